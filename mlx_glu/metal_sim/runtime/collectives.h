// What the shim calls: simdgroup operations, barriers, threadgroup variables.
#pragma once
#include "scheduler.h"

// 0 tree, 1 sequential, 2 reversed: how the shim combines the lanes of a simdgroup.
EXPORT int __msl_reduce_order = 0;

// Waits for the lanes of the simdgroup; `combine` then gets all their slots.
EXPORT void __msl_collective(Combine combine, void* slot, const char* name,
                             u32 elements) {
  Fiber* me = current;
  me->combine = combine;
  me->slot = slot;
  me->operation = name;
  me->elements = elements;
  me->site = last_call = (u64)__builtin_return_address(0);
  wait_in(AT_SIMD);
}

EXPORT void __msl_barrier(int of_simdgroup, int flags) {
  Fiber* me = current;
  me->combine = nullptr;
  me->operation = "simdgroup_barrier";
  me->flags = flags;
  me->site = last_call = (u64)__builtin_return_address(0);
  wait_in(of_simdgroup ? AT_SIMD : AT_BARRIER);
}

EXPORT u32 __msl_lane() { return lane_of(current); }

static void* new_variable(u32 id, u64 size, const char* name, u64 site) {
  u64 total = launch->threadgroup_bytes + size;
  launch->threadgroup_bytes = total;
  if (total > launch->threadgroup_limit) {
    note(THREADGROUP_MEMORY, site, 0, name, total, launch->threadgroup_limit);
  }
  if (variable_count == kMaxVariables || size > kPlace / 2) abandon();
  variables[variable_count] = {size, id, name};
  poison(variable_count);
  return address_of(variable_count++);
}

// The threadgroup's copy of a variable. A template's instances share an id.
EXPORT void* __msl_tg_alloc(u32 id, u64 size, const char* name) {
  for (u32 i = 0; i < variable_count; i++) {
    if (variables[i].id == id && variables[i].size == size) return address_of(i);
  }
  return new_variable(id, size, name, (u64)__builtin_return_address(0));
}

// Counts one execution of a basic block of the kernel.
EXPORT void __msl_block(u32 index) {
  if (launch && index < launch->block_count) launch->blocks[index]++;
}
