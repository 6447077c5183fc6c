// A kernel runs in a forked child with a deadline: whatever it does, the caller lives.
#pragma once
#include "access.h"
#include "threadgroup.h"

enum Signal {
  SIGINT = 2,
  SIGILL = 4,
  SIGBUS = 7,
  SIGFPE = 8,
  SIGKILL = 9,
  SIGSEGV = 11,
  SIGTERM = 15,
  SIGCHLD = 17,
};

static const double kGrace = 1.0;   // seconds between asking a child to end and force
static const u64 kSignalStack = 1ul << 16;

// Which thread's guard page an address lies in, or -1.
static i64 overflowing_thread(u64 address) {
  u64 in_stacks = address - (u64)stacks;
  if (in_stacks >= full_count * stack_stride) return -1;
  return in_stacks % stack_stride < kGuard ? (i64)(in_stacks / stack_stride) : -1;
}

static void on_signal(int signal, void* info, void* context) {
  u64 address = *(u64*)((u8*)info + 16);
  u64 pc = *(u64*)((u8*)context + kSignalPc);
  if (signal == SIGINT) leave(1);
  // In the runtime, or in libm: the place where the kernel called it says more.
  if (pc < launch->code_low || pc >= launch->code_high) pc = last_call - 1;
  if (signal == SIGTERM) {
    note(TIMEOUT, pc, 0, "");
  } else if (signal == SIGSEGV && overflowing_thread(address) >= 0) {
    note(STACK_OVERFLOW, pc, 0, "", overflowing_thread(address), launch->stack_size);
  } else {
    note(CRASH, pc, 0, "", signal, address);
  }
  leave(1);
}

// What rt_sigaction takes.
struct SignalAction {
  void (*handler)(int, void*, void*);
  u64 flags;
#if defined(__x86_64__)
  void (*restorer)();
#endif
  u64 mask;
};

static void never_called() {}

static void catch_signals() {
  struct {
    void* base;
    i64 flags;
    u64 size;
  } stack = {allocate(kSignalStack), 0, kSignalStack};
  call(CALL_SIGALTSTACK, (u64)&stack, 0);
  SignalAction action = {};
  action.handler = on_signal;
  const u64 with_info = 4, on_stack = 0x08000000;
  action.flags = with_info | on_stack;
#if defined(__x86_64__)
  const u64 with_restorer = 0x04000000;
  action.flags |= with_restorer;
  action.restorer = never_called;   // no handler returns
#endif
  const Signal caught[] = {SIGINT, SIGILL, SIGBUS, SIGFPE, SIGSEGV, SIGTERM};
  for (Signal signal : caught) {
    call(CALL_SIGACTION, signal, (u64)&action, 0, sizeof action.mask);
  }
  u64 none = 0;
  const u64 set_mask = 2;
  call(CALL_SIGPROCMASK, set_mask, (u64)&none, 0, sizeof none);
}

// A wrong index meets pages without access, rather than another buffer.
static void guard_buffers() {
  for (u32 i = 0; i < launch->region_count; i++) {
    const Region& region = launch->regions[i];
    u64 begin = (u64)region.base / kGuard * kGuard;
    u64 end = ((u64)region.base + region.size + kGuard - 1) / kGuard * kGuard;
    protect(begin - launch->gap, begin, NO_ACCESS);
    protect(end, end + launch->gap, NO_ACCESS);
    if (!region.is_output) protect(begin, end, READ_ACCESS);
  }
}

[[noreturn]] static void run_child() {
  const u64 die_with_parent = 1;
  call(CALL_PRCTL, die_with_parent, SIGKILL);
  guard_buffers();
  prepare_threads();
  prepare_threadgroup_memory();
  if (launch->checked) {
    prepare_counting();
    prepare_shadow();
  }
  catch_signals();
  __msl_reduce_order = launch->reduce_order;
  set_flush_denormals(launch->flush_denormals);
  double start = now();
  run_all_threadgroups();
  launch->seconds = now() - start;
  if (launch->checked) finish_shadow();
  launch->finished = 1;
  leave(0);
}

// Waits until the child has ended or the time is over.
static bool ended_by(double deadline, u64 child, int* status) {
  double pause = 2e-5;
  for (;;) {
    const u64 no_wait = 1;
    u64 result = call(CALL_WAIT4, child, (u64)status, no_wait);
    if (result == child || failed(result)) return true;
    if (now() > deadline) return false;
    sleep_for(pause);
    if (pause < 1e-3) pause *= 1.1;
  }
}

// The parent's part. Uses no globals: other threads may wait for children of theirs.
static void await_child(Launch* described, u64 child) {
  int* status = &described->status;
  if (ended_by(now() + described->seconds_allowed, child, status)) return;
  described->timed_out = 1;
  call(CALL_KILL, child, SIGTERM);   // the child notes where it is
  if (ended_by(now() + kGrace, child, status)) return;
  call(CALL_KILL, child, SIGKILL);
  ended_by(now() + 1e9, child, status);
}
