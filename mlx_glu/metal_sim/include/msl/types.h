// Scalar types and their literals.
#pragma once

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
typedef long ptrdiff_t;
typedef _Float16 half;
typedef __bf16 bfloat;

static_assert((char)-1 < 0, "char is signed in MSL: compile with -fsigned-char");
static_assert(sizeof(long) == 8, "long has 64 bits in MSL");

__attribute__((__nodebug__)) constexpr half operator""h(long double x) {
  return (half)x;
}
__attribute__((__nodebug__)) constexpr bfloat operator""bf(long double x) {
  return (bfloat)(float)x;
}

namespace metal {
using ::bfloat;
using ::half;
using ::int16_t;
using ::int32_t;
using ::int64_t;
using ::int8_t;
using ::ptrdiff_t;
using ::size_t;
using ::uchar;
using ::uint;
using ::uint16_t;
using ::uint32_t;
using ::uint64_t;
using ::uint8_t;
using ::ulong;
using ::ushort;
}  // namespace metal
