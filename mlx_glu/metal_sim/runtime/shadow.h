// Which accesses race: rules on who touched a byte last, and after which barrier.
//
// Two accesses of one byte, one of them a write, must be by the same thread, or with
// a threadgroup barrier between them that orders this memory, or by one simdgroup
// with such a simdgroup barrier between them. Atomics do not race with each other.
#pragma once
#include "state.h"

// Who accessed a cell, and when. group 0: nobody did.
struct Access {
  u32 group;   // number + 1
  u32 epoch;
  u16 simd_epoch;
  u16 thread : 15;
  u16 atomic : 1;
};

// A later write may race with any earlier read: of these readers, one is the latest,
// one its neighbour in the simdgroup, one of another simdgroup or threadgroup.
struct Cell {
  Access write, read, neighbour, stranger;
};

static Access this_access(Space space, bool atomic) {
  Access access;
  access.group = launch->group + 1;
  access.epoch = epoch[space];
  access.simd_epoch = (u16)simd_epoch[space][simdgroup_of(current)];
  access.thread = thread_index(current);
  access.atomic = atomic;
  return access;
}

static bool same_simdgroup(const Access& a, const Access& b) {
  return a.group == b.group && a.thread / kLanes == b.thread / kLanes;
}

static bool conflicts(const Access& earlier, const Access& now, Space space) {
  if (!earlier.group || (earlier.atomic && now.atomic)) return false;
  // Threadgroup memory begins anew with each threadgroup.
  if (earlier.group != now.group) return space == DEVICE;
  if (earlier.thread == now.thread || earlier.epoch != now.epoch) return false;
  return !same_simdgroup(earlier, now) || earlier.simd_epoch == now.simd_epoch;
}

static void remember_read(Cell* cell, const Access& now) {
  const Access& last = cell->read;
  if (!same_simdgroup(last, now)) {
    cell->stranger = last;
    cell->neighbour = {};
  } else if (last.thread != now.thread) {
    cell->neighbour = last;
  }
  cell->read = now;
}

// A write after an unordered write. Whether it stores what is there already is known
// once it is done: at the next access or stop of the thread.
static struct {
  u8* address;   // null: none
  u64 size;
  u8 old[16];
  u64 pc;
  const char* name;
  i64 offset;
  Access earlier;
} unsettled;

static void note_race(Code code, u64 pc, const char* name, i64 offset, bool write,
                      const Access& earlier) {
  Note* made = note(code, pc, 0, name, offset, earlier.thread, (i64)earlier.group - 1);
  if (made && made->count == 1) made->is_write = write;
}

static void settle_write() {
  if (!unsettled.address) return;
  bool same = true;
  for (u64 i = 0; i < unsettled.size; i++) {
    same &= unsettled.address[i] == unsettled.old[i];
  }
  unsettled.address = nullptr;
  note_race(same ? SAME_VALUE_RACE : RACE_AFTER_WRITE, unsettled.pc, unsettled.name,
            unsettled.offset, true, unsettled.earlier);
}

static void settle_later(u8* address, u64 size, u64 pc, const char* name, i64 offset,
                         const Access& earlier) {
  if (unsettled.address) return;
  unsettled.address = address;
  unsettled.size = size < 16 ? size : 16;
  memcpy(unsettled.old, address, unsettled.size);
  unsettled.pc = pc;
  unsettled.name = name;
  unsettled.offset = offset;
  unsettled.earlier = earlier;
}

struct Place {
  u8* address;
  u64 size;
  u64 pc;
  const char* name;   // of the buffer or variable
  i64 offset;         // of the address in it
  Space space;
  bool write, atomic;
};

// Checks one cell against this access, and records the access in it.
static void check_race(Cell* cell, const Place& at, const Access& now) {
  if (conflicts(cell->write, now, at.space)) {
    if (at.write && !at.atomic) {
      settle_later(at.address, at.size, at.pc, at.name, at.offset, cell->write);
    } else {
      note_race(RACE_AFTER_WRITE, at.pc, at.name, at.offset, at.write, cell->write);
    }
  }
  if (!at.write) return remember_read(cell, now);
  const Access* readers[] = {&cell->read, &cell->neighbour, &cell->stranger};
  for (const Access* reader : readers) {
    if (!conflicts(*reader, now, at.space)) continue;
    note_race(RACE_AFTER_READ, at.pc, at.name, at.offset, true, *reader);
    break;
  }
  cell->write = now;
}

// Barriers: what follows is ordered after what came before, in the spaces they name.
static void order_threadgroup(u32 flags) {
  if (flags & 1) epoch[DEVICE]++;
  if (flags & 2) epoch[THREADGROUP]++;
}

static void order_simdgroup(u32 simdgroup, u32 flags) {
  if (flags & 1) simd_epoch[DEVICE][simdgroup]++;
  if (flags & 2) simd_epoch[THREADGROUP][simdgroup]++;
}

static void order_everything() { order_threadgroup(3); }
