// numeric_limits.
#pragma once

namespace metal {

template <typename T> struct numeric_limits {
  static constexpr bool is_specialized = false;
};

#define MSL_INTEGER_LIMITS(T, smallest, largest)                     \
  template <> struct numeric_limits<T> {                             \
    static constexpr bool is_specialized = true;                     \
    static constexpr bool is_integer = true;                         \
    static constexpr bool is_signed = smallest < 0;                  \
    static constexpr int digits =                                    \
        is_same_v<T, bool> ? 1 : sizeof(T) * 8 - (is_signed ? 1 : 0); \
    MSL_FN static constexpr T min() { return smallest; }             \
    MSL_FN static constexpr T max() { return largest; }              \
    MSL_FN static constexpr T lowest() { return smallest; }          \
  };
MSL_INTEGER_LIMITS(bool, false, true)
MSL_INTEGER_LIMITS(char, -128, 127)
MSL_INTEGER_LIMITS(signed char, -128, 127)
MSL_INTEGER_LIMITS(uchar, 0, 255)
MSL_INTEGER_LIMITS(short, -32768, 32767)
MSL_INTEGER_LIMITS(ushort, 0, 65535)
MSL_INTEGER_LIMITS(int, (-2147483647 - 1), 2147483647)
MSL_INTEGER_LIMITS(uint, 0, 4294967295u)
MSL_INTEGER_LIMITS(long, (-9223372036854775807l - 1), 9223372036854775807l)
MSL_INTEGER_LIMITS(ulong, 0, 18446744073709551615ul)
#undef MSL_INTEGER_LIMITS

#define MSL_FLOAT_LIMITS(T, smallest, largest, step, tiny, bits)            \
  template <> struct numeric_limits<T> {                                    \
    static constexpr bool is_specialized = true;                            \
    static constexpr bool is_integer = false;                               \
    static constexpr bool is_signed = true;                                 \
    static constexpr int digits = bits;                                     \
    MSL_FN static constexpr T min() { return (T)smallest; }                 \
    MSL_FN static constexpr T max() { return (T)largest; }                  \
    MSL_FN static constexpr T lowest() { return (T)-largest; }              \
    MSL_FN static constexpr T epsilon() { return (T)step; }                 \
    MSL_FN static constexpr T denorm_min() { return (T)tiny; }              \
    MSL_FN static constexpr T infinity() { return (T)__builtin_inff(); }    \
    MSL_FN static constexpr T quiet_NaN() { return (T)__builtin_nanf(""); } \
  };
MSL_FLOAT_LIMITS(float, 0x1p-126f, 0x1.fffffep+127f, 0x1p-23f, 0x1p-149f, 24)
MSL_FLOAT_LIMITS(half, 0x1p-14f, 65504.0f, 0x1p-10f, 0x1p-24f, 11)
MSL_FLOAT_LIMITS(bfloat, 0x1p-126f, 0x1.fep+127f, 0x1p-7f, 0x1p-133f, 8)
#undef MSL_FLOAT_LIMITS

}  // namespace metal
