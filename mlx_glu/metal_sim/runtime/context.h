// Changing from one stack to another, and the mode of the floating-point unit.
#pragma once
#include "abi.h"

// Saves the callee-saved registers on this stack and continues on the other.
extern "C" void msl_switch(void** save, void* load);

#if defined(__x86_64__)
asm(R"(
.text
.globl msl_switch
.hidden msl_switch
.type msl_switch,@function
msl_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size msl_switch, .-msl_switch
)");

// A stack that msl_switch enters at the start of a function.
static void* fresh_stack(u8* top, void (*start)()) {
  u64* sp = (u64*)((u64)top & ~63ul);
  *--sp = 0;   // where a caller's address would be: keeps the stack aligned
  *--sp = (u64)start;
  for (int saved = 0; saved < 6; saved++) *--sp = 0;
  return sp;
}

// Offset of the instruction pointer in the ucontext_t of a signal handler.
static const u64 kSignalPc = 168;

static void set_flush_denormals(bool flush) {
  const u32 to_zero_and_are_zero = 0x8040;
  u32 mode = __builtin_ia32_stmxcsr() & ~to_zero_and_are_zero;
  __builtin_ia32_ldmxcsr(flush ? mode | to_zero_and_are_zero : mode);
}
#elif defined(__aarch64__)
asm(R"(
.text
.globl msl_switch
.hidden msl_switch
.type msl_switch,@function
msl_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size msl_switch, .-msl_switch
)");

static void* fresh_stack(u8* top, void (*start)()) {
  u64* sp = (u64*)((u64)top & ~63ul) - 20;
  for (int saved = 0; saved < 20; saved++) sp[saved] = 0;
  sp[11] = (u64)start;   // x30, where ret continues
  return sp;
}

static const u64 kSignalPc = 440;

static void set_flush_denormals(bool flush) {
  const u64 flush_float = 1ul << 24;
  u64 mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  mode = flush ? mode | flush_float : mode & ~flush_float;
  asm volatile("msr fpcr, %0" : : "r"(mode));
}
#endif
