// Structures shared with Python (bindings.py) and with the kernel (msl/launch.h).
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef long i64;

#define EXPORT extern "C" __attribute__((visibility("default")))

// The attributes of a kernel's parameters. msl/launch.h reads them by name.
struct MslThread {
  u32 thread_position_in_grid[3];
  u32 thread_position_in_threadgroup[3];
  u32 threadgroup_position_in_grid[3];
  u32 threads_per_grid[3];
  u32 threads_per_threadgroup[3];
  u32 threadgroups_per_grid[3];
  u32 dispatch_threads_per_threadgroup[3];
  u32 zero3[3];
  u32 thread_index_in_threadgroup;
  u32 thread_index_in_simdgroup;
  u32 simdgroup_index_in_threadgroup;
  u32 simdgroups_per_threadgroup;
  u32 threads_per_simdgroup;
  u32 dispatch_simdgroups_per_threadgroup;
  u32 thread_index_in_quadgroup;
  u32 quadgroup_index_in_threadgroup;
  u32 quadgroups_per_threadgroup;
  u32 dispatch_quadgroups_per_threadgroup;
};

typedef void (*LaunchFunction)(const MslThread*, void* const* buffers);

// One buffer of the kernel.
struct Region {
  u8* base;
  u64 size;
  u32 is_output;
  u32 initialised;   // an output that holds values before the kernel runs
  u32 granule;       // bytes per shadow cell
  u32 element;       // bytes per element
  u64 read, written, read_merged, written_merged, touched;
  u64 loads, stores, lane_loads, lane_stores;
  u64 unwritten, first_unwritten;   // elements
  char name[64];
};

// What happened; bindings.py holds the sentence for each.
enum Code : u32 {
  NO_CODE,
  DIVERGENT_SIMD,
  INACTIVE_LANES,
  BARRIER_DIVERGENT,
  BARRIER_EXITED,
  THREADGROUP_MEMORY,
  OUT_OF_BUFFER,
  OUT_OF_THREADGROUP,
  UNBOUND,
  READ_ONLY,
  UNINITIALISED_OUTPUT,
  UNINITIALISED_THREADGROUP,
  RACE_AFTER_WRITE,
  RACE_AFTER_READ,
  SAME_VALUE_RACE,
  FOREIGN_STACK,
  ARRAY_INDEX,
  PRIVATE_BOUNDS,
  SHIFT,
  DIVISION,
  MISALIGNED,
  STACK_OVERFLOW,
  CRASH,
  TIMEOUT,
};

// One finding. Its numbers, name and text fill the gaps of its sentence.
struct Note {
  u32 code;
  u32 count;
  u64 pc, other_pc;
  i64 number[3];
  u32 thread, group;
  u32 is_write, unused;
  char name[64];
  char text[64];
};

// One access of one lane to a buffer, for the first threadgroups.
struct Trace {
  u64 address, pc;
  u32 occurrence, group;
  u16 lane, simdgroup;
  u16 size;
  u8 write, region;
};

struct Launch {
  LaunchFunction function;
  void** buffers;
  Region* regions;
  Note* notes;
  Trace* trace;
  u64* blocks;   // executions of each basic block, or null
  u64 code_low, code_high;   // the kernel's library, which holds its constants
  u64 stack_size;
  u64 gap;   // bytes without use before and after each buffer
  double seconds_allowed;
  u64 trace_capacity;
  u32 grid[3], threadgroup[3];
  u32 region_count, note_capacity, block_count, trace_groups;
  u32 checked, strict, lane_order, reduce_order, flush_denormals;
  u32 threadgroup_limit;

  // Results.
  u32 note_count, threadgroup_bytes;
  u64 trace_count;
  u64 threadgroups;
  u64 abandoned;   // threadgroups given up at a fault
  u64 simd_operations, matrix_operations, barriers;
  u64 simdgroup_barriers, partial_operations, switches;
  double seconds;
  u32 group;      // the threadgroup that runs, or ran last
  u32 finished;   // else the child was stopped, or crashed
  u32 timed_out;
  int status;       // of the child, as wait4 gives it
  i64 fork_error;   // why there was no child, or 0
};

EXPORT u64 msl_sizeof(int what) {
  u64 sizes[] = {sizeof(Launch), sizeof(Region), sizeof(Note), sizeof(Trace)};
  return sizes[what];
}
