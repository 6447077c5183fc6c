// Threadgroup variables. Each has a place of its own, far from all others.
#pragma once
#include "state.h"

struct Variable {
  u64 size;
  u32 id;
  const char* name;
};

static const u32 kMaxVariables = 64;
static const u64 kPlace = 1ul << 17;
// A variable starts in the middle, so that both ends have room for a wrong index.
static const u64 kOffset = kPlace / 4;

static Variable variables[kMaxVariables];
static u32 variable_count;
static u8* places;

static u8* address_of(u32 variable) { return places + variable * kPlace + kOffset; }

static void prepare_threadgroup_memory() {
  places = allocate_array<u8>(kMaxVariables * kPlace);
}

// Whether an address lies in threadgroup memory or in the gaps of it.
static bool is_threadgroup_address(const u8* address) {
  return address >= places && address < places + variable_count * kPlace;
}

// All bits set: NaN as a float, -1 as an integer.
static void poison(u32 variable) {
  memset(address_of(variable), 0xff, variables[variable].size);
}

static void forget_threadgroup_memory() {
  for (u32 i = 0; i < variable_count; i++) poison(i);
}
