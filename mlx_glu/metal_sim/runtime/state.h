// The state of a run. One process runs one launch on one OS thread: plain globals.
#pragma once
#include "context.h"
#include "system.h"

enum State : u32 { READY, PAUSED, AT_SIMD, AT_BARRIER, DONE };

typedef void (*Combine)(void** slots);

// One GPU thread.
struct Fiber {
  void* stack_pointer;
  State state;
  // Where it waits: the combining function (null for a barrier), its operand, the
  // operation's name, the call's address, the barrier's flags, the vector's length.
  Combine combine;
  void* slot;
  const char* operation;
  u64 site;
  u32 flags;
  u32 elements;
  u32 logged;   // accesses since the log of the simdgroup was last emptied
  MslThread thread;
};

static const u32 kLanes = 32;
static const u32 kNoThread = ~0u;
static const u32 kMaxSimdgroups = 32;
static const u64 kGuard = 1ul << 16;   // a multiple of every page size in use

enum Space : u32 { DEVICE, THREADGROUP };

static Launch* launch;
static Fiber* current;   // null while the scheduler or a combining function runs
static Fiber* fibers;
static void* scheduler_stack;
static u8* stacks;
static u64 stack_stride;
static u32 thread_count;   // of the running threadgroup, smaller at the grid's edge
static u32 full_count;     // of a whole threadgroup
static u64 last_call;      // the kernel's latest call into the runtime, returning there
static bool aborted;       // the running threadgroup is given up
// How many barriers have ordered memory: shadow.h compares them.
static u32 epoch[2];
static u32 simd_epoch[2][kMaxSimdgroups];

static u32 lane_of(const Fiber* fiber) {
  return fiber->thread.thread_index_in_simdgroup;
}

static u32 thread_index(const Fiber* fiber) {
  return fiber->thread.thread_index_in_threadgroup;
}

static u32 simdgroup_of(const Fiber* fiber) {
  return fiber->thread.simdgroup_index_in_threadgroup;
}

static void copy_text(char* to, const char* from, u32 room) {
  u32 used = 0;
  while (from && from[used] && used + 1 < room) {
    to[used] = from[used];
    used++;
  }
  to[used] = 0;
}

// Records a finding, once per kind and place; later ones are counted.
static Note* note(Code code, u64 pc, u64 other_pc, const char* name, i64 a = 0,
                  i64 b = 0, i64 c = 0) {
  for (u32 i = 0; i < launch->note_count; i++) {
    Note* old = &launch->notes[i];
    if (old->code == code && old->pc == pc && old->other_pc == other_pc) {
      old->count++;
      return old;
    }
  }
  if (launch->note_count >= launch->note_capacity) return nullptr;
  Note* fresh = &launch->notes[launch->note_count];
  fresh->code = code;
  fresh->count = 1;
  fresh->pc = pc;
  fresh->other_pc = other_pc;
  fresh->number[0] = a;
  fresh->number[1] = b;
  fresh->number[2] = c;
  fresh->thread = current ? thread_index(current) : kNoThread;
  fresh->group = launch->group;
  copy_text(fresh->name, name, sizeof fresh->name);
  launch->note_count++;
  return fresh;
}
