// Atomic functions on memory of address space MSL_SPACE.

template <typename T>
MSL_FN T atomic_load_explicit(const volatile MSL_SPACE atomic<T>* p, memory_order) {
  using Bits = __atomic_bits<T>;
  Bits bits = __atomic_load_n((const volatile MSL_SPACE Bits*)p, __ATOMIC_RELAXED);
  return as_type<T>(bits);
}

template <typename T>
MSL_FN void atomic_store_explicit(volatile MSL_SPACE atomic<T>* p, __not_deduced<T> x,
                                  memory_order) {
  using Bits = __atomic_bits<T>;
  __atomic_store_n((volatile MSL_SPACE Bits*)p, as_type<Bits>(x), __ATOMIC_RELAXED);
}

template <typename T>
MSL_FN T atomic_exchange_explicit(volatile MSL_SPACE atomic<T>* p, __not_deduced<T> x,
                                  memory_order) {
  using Bits = __atomic_bits<T>;
  Bits bits = __atomic_exchange_n((volatile MSL_SPACE Bits*)p, as_type<Bits>(x),
                                  __ATOMIC_RELAXED);
  return as_type<T>(bits);
}

template <typename T>
MSL_FN bool atomic_compare_exchange_weak_explicit(volatile MSL_SPACE atomic<T>* p,
                                                  thread T* expected,
                                                  __not_deduced<T> x, memory_order,
                                                  memory_order) {
  using Bits = __atomic_bits<T>;
  Bits bits = as_type<Bits>(*expected);
  bool done = __atomic_compare_exchange_n((volatile MSL_SPACE Bits*)p, &bits,
                                          as_type<Bits>(x), true, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED);
  *expected = as_type<T>(bits);
  return done;
}

template <typename T, typename F>
MSL_FN T __atomic_update(volatile MSL_SPACE atomic<T>* p, F next) {
  T old = atomic_load_explicit(p, memory_order_relaxed);
  constexpr memory_order relaxed = memory_order_relaxed;
  while (!atomic_compare_exchange_weak_explicit(p, &old, next(old), relaxed, relaxed)) {
  }
  return old;
}

template <typename T, __if_atomic_number<T> = 0>
MSL_FN T atomic_fetch_add_explicit(volatile MSL_SPACE atomic<T>* p, __not_deduced<T> x,
                                   memory_order) {
  if constexpr (is_same_v<T, float>) {
    return __atomic_update(p, [=](T old) { return old + x; });
  } else {
    return __atomic_fetch_add((volatile MSL_SPACE T*)p, x, __ATOMIC_RELAXED);
  }
}

template <typename T, __if_atomic_number<T> = 0>
MSL_FN T atomic_fetch_sub_explicit(volatile MSL_SPACE atomic<T>* p, __not_deduced<T> x,
                                   memory_order) {
  if constexpr (is_same_v<T, float>) {
    return __atomic_update(p, [=](T old) { return old - x; });
  } else {
    return __atomic_fetch_sub((volatile MSL_SPACE T*)p, x, __ATOMIC_RELAXED);
  }
}

template <typename T, __if_atomic_integer<T> = 0>
MSL_FN T atomic_fetch_min_explicit(volatile MSL_SPACE atomic<T>* p, __not_deduced<T> x,
                                   memory_order) {
  return __atomic_update(p, [=](T old) { return x < old ? x : old; });
}

template <typename T, __if_atomic_integer<T> = 0>
MSL_FN T atomic_fetch_max_explicit(volatile MSL_SPACE atomic<T>* p, __not_deduced<T> x,
                                   memory_order) {
  return __atomic_update(p, [=](T old) { return old < x ? x : old; });
}

template <typename T, __if_atomic_integer<T> = 0>
MSL_FN T atomic_fetch_and_explicit(volatile MSL_SPACE atomic<T>* p, __not_deduced<T> x,
                                   memory_order) {
  return __atomic_fetch_and((volatile MSL_SPACE T*)p, x, __ATOMIC_RELAXED);
}

template <typename T, __if_atomic_integer<T> = 0>
MSL_FN T atomic_fetch_or_explicit(volatile MSL_SPACE atomic<T>* p, __not_deduced<T> x,
                                  memory_order) {
  return __atomic_fetch_or((volatile MSL_SPACE T*)p, x, __ATOMIC_RELAXED);
}

template <typename T, __if_atomic_integer<T> = 0>
MSL_FN T atomic_fetch_xor_explicit(volatile MSL_SPACE atomic<T>* p, __not_deduced<T> x,
                                   memory_order) {
  return __atomic_fetch_xor((volatile MSL_SPACE T*)p, x, __ATOMIC_RELAXED);
}
