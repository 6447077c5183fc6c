// Checks every access of a GPU thread to memory, before it happens.
#pragma once
#include "scheduler.h"

static Cell** output_cells;   // by region; null for inputs
static u8** input_cells;      // by region: 1 once a cell has been read
static Cell* place_cells;     // one per byte of threadgroup memory

static void prepare_shadow() {
  output_cells = allocate_array<Cell*>(launch->region_count);
  input_cells = allocate_array<u8*>(launch->region_count);
  for (u32 i = 0; i < launch->region_count; i++) {
    const Region& region = launch->regions[i];
    u64 cells = region.size / region.granule + 1;
    if (region.is_output) {
      output_cells[i] = allocate_array<Cell>(cells);
    } else {
      input_cells[i] = allocate_array<u8>(cells);
    }
  }
  place_cells = allocate_array<Cell>(kMaxVariables * kPlace);
}

static Note* note_access(Code code, const Place& at, i64 b = 0) {
  Note* made = note(code, at.pc, 0, at.name, at.offset, at.size, b);
  if (made && made->count == 1) made->is_write = at.write;
  return made;
}

static u64 distance(const Region& region, const u8* address) {
  if (address < region.base) return region.base - address;
  if (address < region.base + region.size) return 0;
  return address - region.base - region.size;
}

[[noreturn]] static void outside_buffers(Place& at) {
  const Region* nearest = nullptr;
  for (u32 i = 0; i < launch->region_count; i++) {
    const Region* region = &launch->regions[i];
    if (!nearest || distance(*region, at.address) < distance(*nearest, at.address)) {
      nearest = region;
    }
  }
  const u64 null_and_index = 1ul << 32;
  if (nearest && (u64)at.address > null_and_index) {
    at.name = nearest->name;
    at.offset = at.address - nearest->base;
    note_access(OUT_OF_BUFFER, at, nearest->size);
  } else {
    at.name = "";
    at.offset = (i64)at.address;
    note_access(UNBOUND, at);
  }
  abandon();
}

static void check_output(u32 number, const Place& at) {
  Region* region = &launch->regions[number];
  Access now = this_access(DEVICE, at.atomic);
  u64 last = (at.offset + at.size - 1) / region->granule;
  for (u64 i = at.offset / region->granule; i <= last; i++) {
    Cell* cell = &output_cells[number][i];
    if (!cell->write.group && !cell->read.group) region->touched += region->granule;
    bool written = cell->write.group || region->initialised;
    if (!at.write && !at.atomic && !written) note_access(UNINITIALISED_OUTPUT, at);
    check_race(cell, at, now);
  }
}

static void check_input(u32 number, const Place& at) {
  Region* region = &launch->regions[number];
  if (at.write) {
    note_access(READ_ONLY, at);
    abandon();
  }
  u64 last = (at.offset + at.size - 1) / region->granule;
  for (u64 i = at.offset / region->granule; i <= last; i++) {
    region->touched += input_cells[number][i] ? 0 : region->granule;
    input_cells[number][i] = 1;
  }
}

static bool check_buffers(Place& at) {
  for (u32 i = 0; i < launch->region_count; i++) {
    Region* region = &launch->regions[i];
    if (at.address < region->base) continue;
    if (at.address + at.size > region->base + region->size) continue;
    at.name = region->name;
    at.offset = at.address - region->base;
    at.space = DEVICE;
    if (region->is_output) {
      check_output(i, at);
    } else {
      check_input(i, at);
    }
    count_access(i, at.address, at.size, at.write, at.pc);
    return true;
  }
  return false;
}

static void check_threadgroup(Place& at) {
  u64 in_places = at.address - places;
  u32 number = in_places / kPlace;
  const Variable& variable = variables[number];
  at.name = variable.name;
  at.offset = at.address - address_of(number);
  at.space = THREADGROUP;
  if (at.offset < 0 || at.offset + at.size > variable.size) {
    note_access(OUT_OF_THREADGROUP, at, variable.size);
    abandon();
  }
  Access now = this_access(THREADGROUP, at.atomic);
  bool missing = false;
  for (u64 i = in_places; i < in_places + at.size; i++) {
    missing |= place_cells[i].write.group != now.group;
    check_race(&place_cells[i], at, now);
  }
  if (missing && !at.write) note_access(UNINITIALISED_THREADGROUP, at);
}

static __attribute__((noinline)) void check_access(u8* address, u64 size, bool write,
                                                   u64 pc, bool atomic = false) {
  if (!current || !launch->checked) return;
  last_call = pc;
  settle_write();
  u64 in_stacks = address - stacks;
  if (in_stacks < full_count * stack_stride) {
    u32 owner = in_stacks / stack_stride;
    if (owner == current - fibers) return;
    Note* made = note(FOREIGN_STACK, pc, 0, "", owner);
    if (made && made->count == 1) made->is_write = write;
    return;
  }
  if (log_is_full()) wait_in(PAUSED);
  Place at = {address, size, pc, "", 0, DEVICE, write, atomic};
  if (check_buffers(at)) return;
  if (is_threadgroup_address(address)) return check_threadgroup(at);
  u64 number = (u64)address;
  bool constant = number >= launch->code_low && number < launch->code_high;
  if (constant && !write) return;
  outside_buffers(at);
}

// Counts the elements of an output that nothing wrote.
static void find_unwritten(u32 number) {
  Region* region = &launch->regions[number];
  u64 cells_each = region->element / region->granule;
  for (u64 element = 0; element < region->size / region->element; element++) {
    bool written = true;
    for (u64 i = 0; i < cells_each; i++) {
      written &= output_cells[number][element * cells_each + i].write.group != 0;
    }
    if (written) continue;
    if (!region->unwritten++) region->first_unwritten = element;
  }
}

static void finish_shadow() {
  for (u32 i = 0; i < launch->region_count; i++) {
    if (launch->regions[i].is_output) find_unwritten(i);
  }
}
