// The functions that clang's -fsanitize=thread calls in place of atomic operations.
// One OS thread runs the kernel, so plain loads and stores do.
#pragma once
#include "hooks.h"

template <typename T>
static T atomic_load(const volatile T* address, u64 pc) {
  check_access((u8*)address, sizeof(T), false, pc, true);
  return *address;
}

template <typename T>
static void atomic_store(volatile T* address, T value, u64 pc) {
  check_access((u8*)address, sizeof(T), true, pc, true);
  *address = value;
}

// Reads and then writes; counted as both.
template <typename T>
static T atomic_begin_update(volatile T* address, u64 pc) {
  check_access((u8*)address, sizeof(T), false, pc, true);
  check_access((u8*)address, sizeof(T), true, pc, true);
  return *address;
}

template <typename T>
static T atomic_exchange_if(volatile T* address, T expected, T value, u64 pc) {
  T old = atomic_begin_update(address, pc);
  if (old == expected) *address = value;
  return old;
}

#define ATOMIC_UPDATE(bits, T, name, expression)                                \
  EXPORT T __tsan_atomic##bits##_##name(volatile T* address, T value, int) {    \
    T old = atomic_begin_update(address, CALLER);                               \
    *address = expression;                                                      \
    return old;                                                                 \
  }

#define ATOMIC_COMPARE(bits, T, name)                                           \
  EXPORT int __tsan_atomic##bits##_##name(volatile T* address, T* expected,     \
                                          T value, int, int) {                  \
    T wanted = *expected;                                                       \
    *expected = atomic_exchange_if(address, wanted, value, CALLER);             \
    return *expected == wanted;                                                 \
  }

#define ATOMICS(bits, T)                                                        \
  EXPORT T __tsan_atomic##bits##_load(const volatile T* address, int) {         \
    return atomic_load(address, CALLER);                                        \
  }                                                                             \
  EXPORT void __tsan_atomic##bits##_store(volatile T* address, T value, int) {  \
    atomic_store(address, value, CALLER);                                       \
  }                                                                             \
  ATOMIC_UPDATE(bits, T, exchange, value)                                       \
  ATOMIC_UPDATE(bits, T, fetch_add, old + value)                                \
  ATOMIC_UPDATE(bits, T, fetch_sub, old - value)                                \
  ATOMIC_UPDATE(bits, T, fetch_and, old & value)                                \
  ATOMIC_UPDATE(bits, T, fetch_or, old | value)                                 \
  ATOMIC_UPDATE(bits, T, fetch_xor, old ^ value)                                \
  ATOMIC_COMPARE(bits, T, compare_exchange_weak)                                \
  ATOMIC_COMPARE(bits, T, compare_exchange_strong)                              \
  EXPORT T __tsan_atomic##bits##_compare_exchange_val(                          \
      volatile T* address, T expected, T value, int, int) {                     \
    return atomic_exchange_if(address, expected, value, CALLER);                \
  }

ATOMICS(8, u8)
ATOMICS(16, u16)
ATOMICS(32, u32)
ATOMICS(64, u64)

EXPORT void __tsan_atomic_thread_fence(int) {}
EXPORT void __tsan_atomic_signal_fence(int) {}
