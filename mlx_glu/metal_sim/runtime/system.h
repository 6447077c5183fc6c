// Linux system calls, made directly: a forked child must not touch the locks of libc.
#pragma once
#include "abi.h"

extern "C" {
void* memset(void*, int, u64);
void* memcpy(void*, const void*, u64);
void* memmove(void*, const void*, u64);
}

#if defined(__x86_64__)
enum Call : u64 {
  CALL_MMAP = 9,
  CALL_MPROTECT = 10,
  CALL_SIGACTION = 13,
  CALL_SIGPROCMASK = 14,
  CALL_NANOSLEEP = 35,
  CALL_CLONE = 56,
  CALL_WAIT4 = 61,
  CALL_KILL = 62,
  CALL_SIGALTSTACK = 131,
  CALL_PRCTL = 157,
  CALL_CLOCK_GETTIME = 228,
  CALL_EXIT_GROUP = 231,
};

static u64 call(Call number, u64 a = 0, u64 b = 0, u64 c = 0, u64 d = 0, u64 e = 0,
                u64 f = 0) {
  u64 result;
  register u64 r10 asm("r10") = d;
  register u64 r8 asm("r8") = e;
  register u64 r9 asm("r9") = f;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}
#elif defined(__aarch64__)
enum Call : u64 {
  CALL_EXIT_GROUP = 94,
  CALL_NANOSLEEP = 101,
  CALL_CLOCK_GETTIME = 113,
  CALL_KILL = 129,
  CALL_SIGALTSTACK = 132,
  CALL_SIGACTION = 134,
  CALL_SIGPROCMASK = 135,
  CALL_PRCTL = 167,
  CALL_CLONE = 220,
  CALL_MMAP = 222,
  CALL_MPROTECT = 226,
  CALL_WAIT4 = 260,
};

static u64 call(Call number, u64 a = 0, u64 b = 0, u64 c = 0, u64 d = 0, u64 e = 0,
                u64 f = 0) {
  register u64 x8 asm("x8") = number;
  register u64 x0 asm("x0") = a;
  register u64 x1 asm("x1") = b;
  register u64 x2 asm("x2") = c;
  register u64 x3 asm("x3") = d;
  register u64 x4 asm("x4") = e;
  register u64 x5 asm("x5") = f;
  asm volatile("svc 0"
               : "+r"(x0)
               : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
               : "memory");
  return x0;
}
#else
#error "the runtime knows x86-64 and aarch64 only"
#endif

static bool failed(u64 result) { return result > -4096ul; }

[[noreturn]] static void leave(int status) {
  for (;;) call(CALL_EXIT_GROUP, status);
}

// Zeroed memory that costs nothing until it is touched.
static void* allocate(u64 size) {
  const u64 read_write = 3, private_anonymous_noreserve = 0x4022;
  u64 result = call(CALL_MMAP, 0, size, read_write, private_anonymous_noreserve, -1);
  if (failed(result)) leave(99);
  return (void*)result;
}

template <typename T>
static T* allocate_array(u64 count) {
  return (T*)allocate(count * sizeof(T));
}

enum Protection { NO_ACCESS = 0, READ_ACCESS = 1 };

static void protect(u64 begin, u64 end, Protection protection) {
  if (begin < end) call(CALL_MPROTECT, begin, end - begin, protection);
}

static double now() {
  i64 time[2];
  const u64 monotonic = 1;
  call(CALL_CLOCK_GETTIME, monotonic, (u64)time);
  return time[0] + time[1] * 1e-9;
}

static void sleep_for(double seconds) {
  i64 time[2] = {(i64)seconds, (i64)((seconds - (i64)seconds) * 1e9)};
  call(CALL_NANOSLEEP, (u64)time, 0);
}
