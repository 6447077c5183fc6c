// Functions of compiler-rt that clang calls where the processor has no bfloat.
#pragma once
#include "abi.h"

// Rounds to nearest, ties to even; keeps a NaN a NaN.
EXPORT __bf16 __truncsfbf2(float x) {
  u32 bits = __builtin_bit_cast(u32, x);
  bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  u32 rounded = is_nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1);
  return __builtin_bit_cast(__bf16, (u16)(rounded >> 16));
}

EXPORT __bf16 __truncdfbf2(double x) { return __truncsfbf2((float)x); }
