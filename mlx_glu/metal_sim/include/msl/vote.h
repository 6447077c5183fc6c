// Votes of the lanes of a simdgroup or quadgroup.
#pragma once

namespace metal {

// A set of lanes; Width of them are a full group.
template <typename Bits, int Width> class __vote {
  Bits lanes;

 public:
  typedef Bits vote_t;
  MSL_FN explicit constexpr __vote(Bits bits = 0) : lanes(bits) {}
  MSL_FN explicit constexpr operator Bits() const { return lanes; }
  MSL_FN constexpr bool any() const { return lanes != 0; }
  MSL_FN constexpr bool all() const {
    constexpr Bits full = (Bits)~0ul >> (sizeof(Bits) * 8 - Width);
    return (lanes & full) == full;
  }
};
typedef __vote<ulong, 32> simd_vote;
typedef __vote<uint, 4> quad_vote;

template <int Width> struct __ballot {
  bool in;
  uint out;

  MSL_COMBINE static void combine(void** slots) {
    for (int group = 0; group < 32; group += Width) {
      uint votes = 0;
      for (int i = 0; i < Width; i++) {
        auto* lane = (__ballot*)slots[group + i];
        if (lane && lane->in) votes |= 1u << i;
      }
      for (int i = 0; i < Width; i++) {
        auto* lane = (__ballot*)slots[group + i];
        if (lane) lane->out = votes;
      }
    }
  }
};

template <int Width>
MSL_CONVERGENT MSL_FN uint __count_votes(bool mine, const char* name) {
  __ballot<Width> lane{mine, 0};
  __msl_collective(&__ballot<Width>::combine, &lane, name, 1);
  return lane.out;
}

#define MSL_VOTES(group, width)                                                \
  MSL_CONVERGENT MSL_FN group##_vote group##_ballot(bool mine) {               \
    return group##_vote(__count_votes<width>(mine, #group "_ballot"));         \
  }                                                                            \
  MSL_CONVERGENT MSL_FN group##_vote group##_active_threads_mask() {           \
    return group##_vote(                                                       \
        __count_votes<width>(true, #group "_active_threads_mask"));            \
  }                                                                            \
  MSL_CONVERGENT MSL_FN bool group##_any(bool mine) {                          \
    return __count_votes<width>(mine, #group "_any") != 0;                     \
  }                                                                            \
  MSL_CONVERGENT MSL_FN bool group##_all(bool mine) {                          \
    return __count_votes<width>(!mine, #group "_all") == 0;                    \
  }                                                                            \
  MSL_CONVERGENT MSL_FN bool group##_is_first() {                              \
    uint active = __count_votes<width>(true, #group "_is_first");              \
    return (uint)__builtin_ctz(active) == __msl_lane() % width;                \
  }
MSL_VOTES(simd, 32)
MSL_VOTES(quad, 4)
#undef MSL_VOTES

}  // namespace metal
