// Atomics: memory_order_relaxed only, as in MSL.
#pragma once

namespace metal {

enum memory_order { memory_order_relaxed = 0 };

template <typename T> struct atomic {
  static_assert(__is_one_of<T, int, uint, bool, float, ulong>,
                "atomic<T>: T must be int, uint, bool, float or ulong");
  T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<bool> atomic_bool;
typedef atomic<float> atomic_float;
typedef atomic<ulong> atomic_ulong;

// The unsigned integer that clang's atomic builtins take in place of T
template <typename T>
using __atomic_bits =
    conditional_t<sizeof(T) == 8, ulong, conditional_t<sizeof(T) == 4, uint, uchar>>;

// What fetch_and, fetch_or ... and fetch_add, fetch_sub are defined for
template <typename T>
using __if_atomic_integer = enable_if_t<__is_one_of<T, int, uint, ulong>, int>;
template <typename T>
using __if_atomic_number = enable_if_t<__is_one_of<T, int, uint, ulong, float>, int>;

#define MSL_SPACE device
#include "atomic_functions.h"
#undef MSL_SPACE
#ifdef MSL_LINT
#define MSL_SPACE threadgroup
#include "atomic_functions.h"
#undef MSL_SPACE
#endif

MSL_FN void atomic_thread_fence(mem_flags, memory_order,
                                thread_scope = thread_scope_device) {}

}  // namespace metal
