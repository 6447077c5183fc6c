// Runs the threads of a threadgroup until all have exited.
//
// The lanes of a simdgroup run one after another, each up to its next simdgroup
// operation or barrier. The last one there completes the operation for all.
#pragma once
#include "shadow.h"
#include "threadgroup_memory.h"
#include "traffic.h"

static void to_scheduler() {
  launch->switches++;
  msl_switch(&current->stack_pointer, scheduler_stack);
}

static void resume(Fiber* fiber) {
  launch->switches++;
  current = fiber;
  msl_switch(&scheduler_stack, fiber->stack_pointer);
  current = nullptr;
}

// Gives the threadgroup up: this thread never continues.
[[noreturn]] static void abandon() {
  aborted = true;
  for (;;) to_scheduler();
}

// Stops the current thread in this state. Goes straight to the next lane if it can.
static void wait_in(State state) {
  settle_write();
  Fiber* me = current;
  me->state = state;
  if (launch->lane_order == 0) {
    u32 mine = thread_index(me);
    u32 end = (mine | (kLanes - 1)) + 1;
    if (end > thread_count) end = thread_count;
    for (u32 next = mine + 1; next < end; next++) {
      if (fibers[next].state != READY) continue;
      launch->switches++;
      current = &fibers[next];
      msl_switch(&me->stack_pointer, fibers[next].stack_pointer);
      return;
    }
  }
  to_scheduler();
}

static void fiber_main() {
  launch->function(&current->thread, launch->buffers);
  for (;;) wait_in(DONE);
}

// Which lane runs as number `turn`.
static u32 lane_at(u32 turn, u32 count) {
  if (launch->lane_order == 0) return turn;
  if (launch->lane_order == 1) return count - 1 - turn;
  // A permutation while 13 and the count share no divisor; 13 and 26 lanes do.
  u32 step = count % 13 ? 13 : 1;
  return (turn * step + 7) % count;
}

static void run_ready_lanes(u32 low, u32 high) {
  for (u32 turn = 0; turn < high - low && !aborted; turn++) {
    Fiber* fiber = &fibers[low + lane_at(turn, high - low)];
    if (fiber->state == READY) resume(fiber);
  }
}

// Lanes that paused to have their accesses counted go on.
static bool wake_paused(u32 low, u32 high) {
  bool any = false;
  for (u32 i = low; i < high; i++) {
    if (fibers[i].state != PAUSED) continue;
    fibers[i].state = READY;
    any = true;
  }
  return any;
}

static bool same_operation(const Fiber* a, const Fiber* b) {
  return a->combine == b->combine && a->operation == b->operation;
}

struct Arrivals {
  u32 at_simd, at_barrier, exited;
  Fiber* first;   // of those at a simdgroup operation
  Fiber* other;   // one at another operation, if any
};

static Arrivals look_around(u32 low, u32 high) {
  Arrivals seen = {};
  for (u32 i = low; i < high; i++) {
    Fiber* fiber = &fibers[i];
    if (fiber->state == DONE) seen.exited++;
    if (fiber->state == AT_BARRIER) seen.at_barrier++;
    if (fiber->state != AT_SIMD) continue;
    seen.at_simd++;
    if (!seen.first) seen.first = fiber;
    if (!seen.other && !same_operation(seen.first, fiber)) seen.other = fiber;
  }
  return seen;
}

static void check_arrivals(const Arrivals& seen) {
  Fiber* first = seen.first;
  if (!seen.other && !seen.at_barrier && !seen.exited) return;
  launch->partial_operations++;
  if (seen.other) {
    Note* made = note(DIVERGENT_SIMD, first->site, seen.other->site, first->operation,
                      lane_of(first), lane_of(seen.other));
    if (made) copy_text(made->text, seen.other->operation, sizeof made->text);
    if (launch->strict) aborted = true;
  } else if (launch->strict >= 2 || (launch->strict && seen.at_barrier)) {
    note(INACTIVE_LANES, first->site, 0, first->operation, seen.at_simd,
         seen.at_barrier, seen.exited);
  }
}

static bool starts_with(const char* text, const char* start) {
  while (*start && *text == *start) text++, start++;
  return !*start;
}

static void count_operation(const Fiber* fiber) {
  if (!fiber->combine) {
    launch->simdgroup_barriers++;
  } else if (starts_with(fiber->operation, "simdgroup_multiply")) {
    launch->matrix_operations++;
  } else {
    launch->simd_operations += fiber->elements;
  }
}

// Completes the operation of the first waiting lane for all lanes that wait at it.
static void complete(const Arrivals& seen, u32 low, u32 high) {
  const Fiber* first = seen.first;
  void* slots[kLanes] = {};
  count_operation(first);
  for (u32 i = low; i < high; i++) {
    Fiber* fiber = &fibers[i];
    if (fiber->state != AT_SIMD || !same_operation(first, fiber)) continue;
    slots[i - low] = fiber->slot;
    fiber->state = READY;
  }
  if (first->combine) {
    first->combine(slots);
  } else {
    order_simdgroup(low / kLanes, first->flags);
  }
}

// Runs a simdgroup until its lanes have exited or wait at a threadgroup barrier.
static void run_simdgroup(u32 low, u32 high) {
  for (;;) {
    run_ready_lanes(low, high);
    merge_accesses(low, high);
    if (aborted) return;
    if (wake_paused(low, high)) continue;
    Arrivals seen = look_around(low, high);
    if (!seen.at_simd) return;
    check_arrivals(seen);
    if (aborted) return;
    complete(seen, low, high);
  }
}
