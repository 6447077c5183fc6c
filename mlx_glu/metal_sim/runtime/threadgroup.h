// One threadgroup after another: positions of its threads, its barriers.
#pragma once
#include "scheduler.h"

static const u64 kStagger = 1ul << 16;   // at least 60 * 192 bytes, and whole pages

static u32 groups_along(u32 axis) {
  u32 size = launch->threadgroup[axis];
  return (launch->grid[axis] + size - 1) / size;
}

static void place_thread(Fiber* fiber, u32 index, const u32* group, const u32* size) {
  MslThread& t = fiber->thread;
  u32 local[3] = {index % size[0], index / size[0] % size[1],
                  index / size[0] / size[1]};
  for (u32 axis = 0; axis < 3; axis++) {
    u32 full = launch->threadgroup[axis];
    t.thread_position_in_threadgroup[axis] = local[axis];
    t.threadgroup_position_in_grid[axis] = group[axis];
    t.thread_position_in_grid[axis] = group[axis] * full + local[axis];
    t.threads_per_grid[axis] = launch->grid[axis];
    t.threads_per_threadgroup[axis] = size[axis];
    t.threadgroups_per_grid[axis] = groups_along(axis);
    t.dispatch_threads_per_threadgroup[axis] = full;
    t.zero3[axis] = 0;
  }
  t.thread_index_in_threadgroup = index;
  t.thread_index_in_simdgroup = index % kLanes;
  t.simdgroup_index_in_threadgroup = index / kLanes;
  t.simdgroups_per_threadgroup = (thread_count + kLanes - 1) / kLanes;
  t.threads_per_simdgroup = kLanes;
  t.dispatch_simdgroups_per_threadgroup = (full_count + kLanes - 1) / kLanes;
  t.thread_index_in_quadgroup = index % 4;
  t.quadgroup_index_in_threadgroup = index / 4;
  t.quadgroups_per_threadgroup = (thread_count + 3) / 4;
  t.dispatch_quadgroups_per_threadgroup = (full_count + 3) / 4;
}

static void start_threads(u32 number) {
  u32 across = groups_along(0), down = groups_along(1);
  u32 group[3] = {number % across, number / across % down, number / across / down};
  u32 size[3];
  for (u32 axis = 0; axis < 3; axis++) {
    u32 full = launch->threadgroup[axis];
    u32 rest = launch->grid[axis] - group[axis] * full;
    size[axis] = rest < full ? rest : full;   // smaller groups at the grid's edge
  }
  thread_count = size[0] * size[1] * size[2];
  for (u32 i = 0; i < thread_count; i++) {
    Fiber* fiber = &fibers[i];
    // Staggered, so that equal frames of neighbours do not share cache sets.
    u8* top = stacks + (i + 1) * stack_stride - i % 61 * 192 - 64;
    fiber->stack_pointer = fresh_stack(top, fiber_main);
    fiber->state = READY;
    fiber->logged = 0;
    place_thread(fiber, i, group, size);
  }
}

// Checks that all threads wait at one barrier; lets them pass.
static void pass_barrier(Fiber* first, u32 waiting) {
  if (waiting < thread_count) {
    note(BARRIER_EXITED, first->site, 0, "", waiting, thread_count - waiting);
  }
  for (u32 i = 0; i < thread_count; i++) {
    Fiber* fiber = &fibers[i];
    if (fiber->state != AT_BARRIER) continue;
    if (fiber->site != first->site) {
      note(BARRIER_DIVERGENT, first->site, fiber->site, "", thread_index(first), i);
      break;
    }
  }
  order_threadgroup(first->flags);
  launch->barriers++;
  for (u32 i = 0; i < thread_count; i++) {
    if (fibers[i].state == AT_BARRIER) fibers[i].state = READY;
  }
}

static void run_threadgroup(u32 number) {
  launch->group = number;
  aborted = false;
  start_threads(number);
  forget_threadgroup_memory();
  order_everything();
  restart_counting();
  for (;;) {
    for (u32 low = 0; low < thread_count; low += kLanes) {
      u32 high = low + kLanes;
      run_simdgroup(low, high < thread_count ? high : thread_count);
      if (aborted) return;
    }
    Fiber* first = nullptr;
    u32 waiting = 0;
    for (u32 i = 0; i < thread_count; i++) {
      if (fibers[i].state != AT_BARRIER) continue;
      if (!first) first = &fibers[i];
      waiting++;
    }
    if (!waiting) return;
    pass_barrier(first, waiting);
  }
}

static void prepare_threads() {
  full_count =
      launch->threadgroup[0] * launch->threadgroup[1] * launch->threadgroup[2];
  stack_stride = launch->stack_size + kStagger + kGuard;
  stacks = allocate_array<u8>(full_count * stack_stride);
  fibers = allocate_array<Fiber>(full_count);
  for (u32 i = 0; i < full_count; i++) {
    u64 bottom = (u64)stacks + i * stack_stride;
    protect(bottom, bottom + kGuard, NO_ACCESS);
  }
}

static void run_all_threadgroups() {
  u32 count = groups_along(0) * groups_along(1) * groups_along(2);
  for (u32 number = 0; number < count; number++) {
    run_threadgroup(number);
    launch->threadgroups++;
    launch->abandoned += aborted;
  }
}
