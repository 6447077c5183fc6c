// Address spaces and function attributes.
//
// Run mode erases the spaces. MSL_LINT makes them real, to be type-checked only.
#pragma once

#if defined(MSL_LINT)
#define device __attribute__((address_space(1)))
#define constant const __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#else
#define device
#define constant const
#define threadgroup
#endif
#define thread

// A shim function has no debug lines of its own: inlined, it points at its caller.
#define MSL_FN inline __attribute__((__always_inline__, __nodebug__))

// Clang may neither duplicate such a call nor sink it into a branch.
#define MSL_CONVERGENT __attribute__((convergent))

// Run once for all lanes of a simdgroup, by the runtime: not the kernel's own code.
// arithmetic.py knows such a function by its section.
#define MSL_COMBINE                            \
  __attribute__((section(".text.msl_combine"))) \
  __attribute__((nodebug, no_sanitize("thread", "undefined", "bounds")))

#define MSL_NOSAN __attribute__((no_sanitize("thread")))

// Loops over the elements of a vector leave no loop behind, whatever the flags.
#define MSL_EACH(i, count)         \
  _Pragma("clang loop unroll(full)") \
  for (int i = 0; i < (count); i++)
