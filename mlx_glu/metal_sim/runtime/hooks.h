// The functions that clang's -fsanitize=thread calls around each access.
#pragma once
#include "access.h"

#define CALLER ((u64)__builtin_return_address(0))

#define READ_HOOK(name, size) \
  EXPORT void name(u8* address) { check_access(address, size, false, CALLER); }

#define WRITE_HOOK(name, size) \
  EXPORT void name(u8* address) { check_access(address, size, true, CALLER); }

#define READ_WRITE_HOOK(name, size)             \
  EXPORT void name(u8* address) {               \
    check_access(address, size, false, CALLER); \
    check_access(address, size, true, CALLER);  \
  }

#define HOOKS_OF_SIZE(size)                                      \
  READ_HOOK(__tsan_read##size, size)                             \
  READ_HOOK(__tsan_unaligned_read##size, size)                   \
  WRITE_HOOK(__tsan_write##size, size)                           \
  WRITE_HOOK(__tsan_unaligned_write##size, size)                 \
  READ_WRITE_HOOK(__tsan_read_write##size, size)                 \
  READ_WRITE_HOOK(__tsan_unaligned_read_write##size, size)

HOOKS_OF_SIZE(1)
HOOKS_OF_SIZE(2)
HOOKS_OF_SIZE(4)
HOOKS_OF_SIZE(8)
HOOKS_OF_SIZE(16)

EXPORT void __tsan_init() {}
EXPORT void __tsan_func_entry(void*) {}
EXPORT void __tsan_func_exit() {}
EXPORT void __tsan_vptr_read(void*) {}
EXPORT void __tsan_vptr_update(void*, void*) {}

static void check_copy(void* to, const void* from, u64 size, u64 pc) {
  if (!size) return;
  check_access((u8*)from, size, false, pc);
  check_access((u8*)to, size, true, pc);
}

EXPORT void* __tsan_memcpy(void* to, const void* from, u64 size) {
  check_copy(to, from, size, CALLER);
  return memcpy(to, from, size);
}

EXPORT void* __tsan_memmove(void* to, const void* from, u64 size) {
  check_copy(to, from, size, CALLER);
  return memmove(to, from, size);
}

EXPORT void* __tsan_memset(void* to, int value, u64 size) {
  if (size) check_access((u8*)to, size, true, CALLER);
  return memset(to, value, size);
}
