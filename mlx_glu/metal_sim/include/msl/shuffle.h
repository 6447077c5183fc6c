// Shuffles and broadcasts over a simdgroup or quadgroup.
#pragma once

namespace metal {

enum class __route {
  index,
  broadcast,
  up,
  down,
  exclusive_or,
  turn_up,
  turn_down,
  first
};

template <typename T, __route Route, int Width> struct __shuffle {
  // The lane that `lane` reads; it may lie outside the group.
  MSL_COMBINE static int source(int lane, int k, int first) {
    switch (Route) {
      case __route::up:
        return lane - k;
      case __route::down:
        return lane + k;
      case __route::exclusive_or:
        return lane ^ k;
      case __route::turn_up:
        return (lane - k) & (Width - 1);
      case __route::turn_down:
        return (lane + k) & (Width - 1);
      case __route::first:
        return first;
      default:
        return k;
    }
  }

  MSL_COMBINE static T value(__lanes<T> lanes, int lane, int first) {
    // All but an index must be the same in all lanes.
    bool same = lanes[lane].k == lanes[first].k;
    if (Route != __route::index && !same) return __poison<T>();
    int from = source(lane, lanes[lane].k, first);
    bool inside = from >= 0 && from < Width;
    bool shifts = Route == __route::up || Route == __route::down;
    if (!inside && shifts) return lanes[lane].in;
    return inside && lanes.active(from) ? lanes[from].in : __poison<T>();
  }

  MSL_COMBINE static void combine(void** slots) {
    for (int group = 0; group < 32; group += Width) {
      __lanes<T> lanes{slots + group};
      int first = 0;
      while (first < Width - 1 && !lanes.active(first)) first++;
      for (int i = 0; i < Width; i++) {
        if (lanes.active(i)) lanes[i].out = value(lanes, i, first);
      }
    }
  }
};

// Shifts that fill the free lanes, within every `modulo` lanes
template <typename T, bool Up, int Width> struct __shift {
  MSL_COMBINE static T value(__lanes<T> lanes, int lane) {
    int modulo = lanes[lane].modulo, k = lanes[lane].k;
    if (k > modulo || modulo < 2 || modulo > Width) return __poison<T>();
    int within = lane % modulo + (Up ? -k : k);
    bool inside = within >= 0 && within < modulo;
    int from = lane / modulo * modulo + (within + modulo) % modulo;
    if (!lanes.active(from)) return __poison<T>();
    return inside ? lanes[from].in : lanes[from].fill;
  }

  MSL_COMBINE static void combine(void** slots) {
    for (int group = 0; group < 32; group += Width) {
      __lanes<T> lanes{slots + group};
      for (int i = 0; i < Width; i++) {
        if (lanes.active(i)) lanes[i].out = value(lanes, i);
      }
    }
  }
};

#define MSL_SHUFFLE(name, route, width)                                              \
  template <typename T, enable_if_t<__is_simd_type<T>, int> = 0>                     \
  MSL_CONVERGENT MSL_FN T name(T x, ushort k) {                                      \
    using Combine = __shuffle<T, __route::route, width>;                             \
    __lane<T> lane;                                                                  \
    lane.in = x;                                                                     \
    lane.k = k;                                                                      \
    __msl_collective(&Combine::combine, &lane, #name, __size<T>);                    \
    return lane.out;                                                                 \
  }                                                                                  \
  template <typename T, enable_if_t<__is_number<T> && !__is_simd_type<T>, int> = 0>  \
  T name(T, ushort) = delete("MSL has no " #name " of this type");
#define MSL_SHUFFLES(group, width)                                \
  MSL_SHUFFLE(group##_shuffle, index, width)                      \
  MSL_SHUFFLE(group##_broadcast, broadcast, width)                \
  MSL_SHUFFLE(group##_shuffle_up, up, width)                      \
  MSL_SHUFFLE(group##_shuffle_down, down, width)                  \
  MSL_SHUFFLE(group##_shuffle_xor, exclusive_or, width)           \
  MSL_SHUFFLE(group##_shuffle_rotate_up, turn_up, width)          \
  MSL_SHUFFLE(group##_shuffle_rotate_down, turn_down, width)
MSL_SHUFFLES(simd, 32)
MSL_SHUFFLES(quad, 4)
#undef MSL_SHUFFLES
#undef MSL_SHUFFLE

#define MSL_FIRST(name, width)                                                       \
  template <typename T, enable_if_t<__is_simd_type<T>, int> = 0>                     \
  MSL_CONVERGENT MSL_FN T name(T x) {                                                \
    using Combine = __shuffle<T, __route::first, width>;                             \
    __lane<T> lane;                                                                  \
    lane.in = x;                                                                     \
    lane.k = 0;                                                                      \
    __msl_collective(&Combine::combine, &lane, #name, __size<T>);                    \
    return lane.out;                                                                 \
  }                                                                                  \
  template <typename T, enable_if_t<__is_number<T> && !__is_simd_type<T>, int> = 0>  \
  T name(T) = delete("MSL has no " #name " of this type");
MSL_FIRST(simd_broadcast_first, 32)
MSL_FIRST(quad_broadcast_first, 4)
#undef MSL_FIRST

#define MSL_SHIFT(name, up, width)                                                   \
  template <typename T, enable_if_t<__is_simd_type<T>, int> = 0>                     \
  MSL_CONVERGENT MSL_FN T name(T x, __not_deduced<T> fill, ushort k,                 \
                               ushort modulo = width) {                              \
    using Combine = __shift<T, up, width>;                                           \
    __lane<T> lane;                                                                  \
    lane.in = x;                                                                     \
    lane.fill = fill;                                                                \
    lane.k = k;                                                                      \
    lane.modulo = modulo;                                                            \
    __msl_collective(&Combine::combine, &lane, #name, __size<T>);                    \
    return lane.out;                                                                 \
  }                                                                                  \
  template <typename T, enable_if_t<__is_number<T> && !__is_simd_type<T>, int> = 0>  \
  T name(T, __not_deduced<T>, ushort, ushort = width) =                              \
      delete("MSL has no " #name " of this type");
MSL_SHIFT(simd_shuffle_and_fill_up, true, 32)
MSL_SHIFT(simd_shuffle_and_fill_down, false, 32)
MSL_SHIFT(quad_shuffle_and_fill_up, true, 4)
MSL_SHIFT(quad_shuffle_and_fill_down, false, 4)
#undef MSL_SHIFT

}  // namespace metal
