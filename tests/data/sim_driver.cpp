// Runs the kernel of test_sim_aarch64.py without Python and without a C library, and
// prints what came of it. Built for aarch64 and for x86-64: both must print the same.
#include "runtime.cpp"

extern "C" {
void msl_launch(const MslThread*, void* const*);

void* memcpy(void* to, const void* from, u64 size) {
  for (volatile u64 i = 0; i < size; i++) ((u8*)to)[i] = ((const u8*)from)[i];
  return to;
}

void* memmove(void* to, const void* from, u64 size) {
  if (to <= from) return memcpy(to, from, size);
  for (volatile u64 i = size; i > 0; i--) ((u8*)to)[i - 1] = ((const u8*)from)[i - 1];
  return to;
}

void* memset(void* to, int value, u64 size) {
  for (volatile u64 i = 0; i < size; i++) ((u8*)to)[i] = (u8)value;
  return to;
}
}

#if defined(__aarch64__)
static const Call kWrite = (Call)64;
asm(".globl _start\n_start:\n  mov x29, #0\n  bl driver\n");
#else
static const Call kWrite = (Call)1;
asm(".globl _start\n_start:\n  call driver\n");
#endif

static void print(const char* text) {
  u64 length = 0;
  while (text[length]) length++;
  call(kWrite, 1, (u64)text, length);
}

static void print(u64 value) {
  char text[24] = {};
  int at = 22;
  do text[at--] = '0' + value % 10;
  while (value /= 10);
  print(text + at + 1);
}

template <typename Value>
static void print(const char* name, Value value) {
  print(" ");
  print(name);
  print("=");
  print(value);
}

static const u32 kThreads = 70, kElements = 256;

struct Shared {
  Launch launch;
  Region regions[3];
  Note notes[8];
  void* buffers[3];
};

static u8* shared_pages(u64 size) {
  const u64 read_write = 3, shared_anonymous_noreserve = 0x4021;
  return (u8*)call(CALL_MMAP, 0, size, read_write, shared_anonymous_noreserve, -1);
}

static void place(Shared* shared, u32 index, u8* base, u64 size, const char* name) {
  Region* region = &shared->regions[index];
  *region = {};
  region->base = base;
  region->size = size;
  region->is_output = index == 1;
  region->granule = region->element = 4;
  copy_text(region->name, name, sizeof region->name);
  shared->buffers[index] = base;
}

static void run_case(int number, bool flush) {
  const u64 gap = 1ul << 20;
  Shared* shared = (Shared*)shared_pages(1 << 16);
  u8* pages = shared_pages(8 * gap);
  pages += -(u64)pages % kGuard;
  float* x = (float*)(pages + gap);
  float* out = (float*)(pages + 3 * gap);
  int* which = (int*)(pages + 5 * gap);
  for (u32 i = 0; i < kElements; i++) x[i] = i == 0 ? 1e-39f : (float)i;
  *which = number;
  place(shared, 0, (u8*)x, kElements * 4, "x");
  place(shared, 1, (u8*)out, kElements * 4, "out");
  place(shared, 2, (u8*)which, 4, "which");
  Launch* launch = &shared->launch;
  launch->function = msl_launch;
  launch->buffers = shared->buffers;
  launch->regions = shared->regions;
  launch->region_count = 3;
  launch->notes = shared->notes;
  launch->note_capacity = 8;
  launch->stack_size = 1 << 17;
  launch->gap = gap;
  launch->seconds_allowed = number == 7 ? 0.5 : 60;
  launch->threadgroup_limit = 32768;
  launch->checked = CHECKED;
  launch->strict = 1;
  launch->flush_denormals = flush;
  for (u32 axis = 0; axis < 3; axis++) {
    launch->grid[axis] = axis ? 1 : 2 * kThreads;
    launch->threadgroup[axis] = axis ? 1 : kThreads;
  }
  msl_run(launch);
  u64 sum = 0;
  for (u32 i = 0; i < 2 * kThreads; i++) {
    sum = sum * 31 + __builtin_bit_cast(u32, out[i]);
  }
  print("case", number);
  print("finished", launch->finished);
  print("timed_out", launch->timed_out);
  if (launch->note_count) {
    print("code", shared->notes[0].code);
    print("count", shared->notes[0].count);
    print("name", (const char*)shared->notes[0].name);
    print("thread", shared->notes[0].thread);
  }
  if (launch->finished) {
    print("simd", launch->simd_operations);
    print("barriers", launch->barriers);
    print("loads", shared->regions[0].loads);
    print("merged", shared->regions[0].read_merged);
    print("sum", sum);
  }
  print("\n");
}

extern "C" [[noreturn]] __attribute__((used)) void driver() {
  for (int number = 0; number < 8; number++) run_case(number, false);
  run_case(6, true);
  leave(0);
}
