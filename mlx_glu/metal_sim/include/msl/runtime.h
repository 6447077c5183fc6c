// What the runtime exports, barriers and memory flags.
#pragma once

extern "C" {
// The threadgroup's copy of variable `id`; made on first use.
MSL_CONVERGENT void* __msl_tg_alloc(unsigned id, unsigned long size, const char* name);

// Where the active lanes of a simdgroup meet. The last to come runs combine over the
// slots of all lanes (null: not active). elements: those of a vector argument.
MSL_CONVERGENT void __msl_collective(void (*combine)(void** slots), void* slot,
                                     const char* name, unsigned elements);

MSL_CONVERGENT void __msl_barrier(int simd, int flags);

// This thread's index in its simdgroup
__attribute__((const)) unsigned __msl_lane();

// Order of reductions: 0 tree, 1 sequential, 2 reversed
extern int __msl_reduce_order;
}

namespace metal {

enum class mem_flags {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
  mem_object_data = 16
};
MSL_FN constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return (mem_flags)((int)a | (int)b);
}
MSL_FN constexpr mem_flags operator&(mem_flags a, mem_flags b) {
  return (mem_flags)((int)a & (int)b);
}

enum thread_scope {
  thread_scope_thread,
  thread_scope_simdgroup,
  thread_scope_threadgroup,
  thread_scope_device
};

MSL_CONVERGENT MSL_FN void threadgroup_barrier(mem_flags flags) {
  __msl_barrier(0, (int)flags);
}
MSL_CONVERGENT MSL_FN void simdgroup_barrier(mem_flags flags) {
  __msl_barrier(1, (int)flags);
}

}  // namespace metal
