// Comes after the kernel: what turns it into void(const MslThread*, void* const*).
#pragma once

// The built-in kernel arguments of one thread; the runtime has the same struct.
struct MslThread {
  uint thread_position_in_grid[3];
  uint thread_position_in_threadgroup[3];
  uint threadgroup_position_in_grid[3];
  uint threads_per_grid[3];
  uint threads_per_threadgroup[3];
  uint threadgroups_per_grid[3];
  uint dispatch_threads_per_threadgroup[3];
  uint zero3[3];
  uint thread_index_in_threadgroup;
  uint thread_index_in_simdgroup;
  uint simdgroup_index_in_threadgroup;
  uint simdgroups_per_threadgroup;
  uint threads_per_simdgroup;
  uint dispatch_simdgroups_per_threadgroup;
  uint thread_index_in_quadgroup;
  uint quadgroup_index_in_threadgroup;
  uint quadgroups_per_threadgroup;
  uint dispatch_quadgroups_per_threadgroup;
};

// The type of parameter I of a kernel
template <int I, typename A, typename... Rest>
struct __msl_at : __msl_at<I - 1, Rest...> {};
template <typename A, typename... Rest> struct __msl_at<0, A, Rest...> {
  using type = A;
};
template <typename F> struct __msl_fn;
template <typename... A> struct __msl_fn<void(A...)> {
  template <int I> using arg = typename __msl_at<I, A...>::type;
};

// A buffer argument: a pointer or a reference to one element
template <typename T> struct __msl_buf {
  MSL_NOSAN MSL_FN static T get(void* p) { return (T)p; }
};
template <typename T> struct __msl_buf<T&> {
  MSL_NOSAN MSL_FN static T& get(void* p) { return *(T*)p; }
};

// A built-in argument, which may be declared as any integer type or vector
template <typename T> MSL_NOSAN MSL_FN T __msl_builtin(const uint* p) {
  if constexpr (metal::__is_vector<T>) {
    T r;
    MSL_EACH(i, metal::__size<T>) r[i] = p[i];
    return r;
  } else {
    return (T)p[0];
  }
}
