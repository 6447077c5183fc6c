// Counts what a kernel moves: per lane, and per simdgroup instruction.
//
// An instruction of a simdgroup is one place in the code and the how-many-eth time
// each lane comes by. Lanes run one after another, so their accesses are logged, and
// merged when all lanes have stopped.
#pragma once
#include "state.h"

// One place in the code that reads, or writes, buffers.
struct Site {
  u64 key;
  u32* executions;             // by thread
  u32 most[kMaxSimdgroups];    // the largest of them in each simdgroup
};

struct Logged {
  u64 address;
  u32 size, occurrence;
  u32 next;   // in the same instruction; 0: the last
  u16 site;
  u8 region, write;
};

// The logged accesses of one instruction, as a list.
struct Instruction {
  u32 stamp;   // of the merge that uses this slot
  u32 head, tail;
};

static const u32 kMaxSites = 1u << 14;
static const u32 kLogPerLane = 512;
static const u32 kLogSize = kLogPerLane * kLanes + 1;   // entry 0 is not used
static const u32 kSlots = 1u << 15;

static Site* sites;
static u16* site_slots;   // hash table of key -> number; 0 is free
static u32 site_count;
static Logged* logged;
static u32 logged_count;
static Instruction* instructions;
static u32* used_slots;
static u32 merge_stamp;

static void prepare_counting() {
  sites = allocate_array<Site>(kMaxSites);
  site_slots = allocate_array<u16>(2 * kMaxSites);
  logged = allocate_array<Logged>(kLogSize);
  instructions = allocate_array<Instruction>(kSlots);
  used_slots = allocate_array<u32>(kLogSize);
  site_count = 1;
}

static u64 mix(u64 x) {
  x *= 0x9e3779b97f4a7c15ul;
  return x ^ x >> 29;
}

static u32 site_number(u64 pc, bool write) {
  u64 key = pc * 2 + write;
  u32 slot = mix(key) % (2 * kMaxSites);
  while (site_slots[slot]) {
    if (sites[site_slots[slot]].key == key) return site_slots[slot];
    slot = (slot + 1) % (2 * kMaxSites);
  }
  // More places than kernels have: they share the last number.
  if (site_count == kMaxSites) return kMaxSites - 1;
  Site* fresh = &sites[site_count];
  fresh->key = key;
  fresh->executions = allocate_array<u32>(full_count);
  return site_slots[slot] = site_count++;
}

static void restart_counting() {
  for (u32 i = 1; i < site_count; i++) {
    memset(sites[i].executions, 0, full_count * sizeof(u32));
    memset(sites[i].most, 0, sizeof sites[i].most);
  }
}

static bool log_is_full() { return current->logged >= kLogPerLane; }

static void trace_access(const Logged& entry, u64 pc) {
  if (launch->group >= launch->trace_groups) return;
  if (launch->trace_count >= launch->trace_capacity) return;
  Trace* trace = &launch->trace[launch->trace_count++];
  trace->address = entry.address;
  trace->pc = pc;
  trace->occurrence = entry.occurrence;
  trace->group = launch->group;
  trace->lane = lane_of(current);
  trace->simdgroup = simdgroup_of(current);
  trace->size = entry.size;
  trace->write = entry.write;
  trace->region = entry.region;
}

static void count_access(u32 region_number, u8* address, u64 size, bool write,
                         u64 pc) {
  Region* region = &launch->regions[region_number];
  (write ? region->written : region->read) += size;
  (write ? region->lane_stores : region->lane_loads)++;
  u32 number = site_number(pc, write);
  Site* site = &sites[number];
  u32 occurrence = ++site->executions[thread_index(current)];
  u32* most = &site->most[simdgroup_of(current)];
  if (occurrence > *most) {
    *most = occurrence;
    (write ? region->stores : region->loads)++;
  }
  Logged* entry = &logged[++logged_count];
  entry->address = (u64)address;
  entry->size = size;
  entry->occurrence = occurrence;
  entry->next = 0;
  entry->site = number;
  entry->region = region_number;
  entry->write = write;
  current->logged++;
  trace_access(*entry, pc);
}

// Finds the instruction of an access, or a free slot for it.
static Instruction* instruction_of(const Logged& entry, u32* slot) {
  u64 key = (u64)entry.site << 40 | (u64)entry.region << 32 | entry.occurrence;
  *slot = mix(key) % kSlots;
  for (;;) {
    Instruction* found = &instructions[*slot];
    if (found->stamp != merge_stamp) return found;
    const Logged& other = logged[found->head];
    if (other.site == entry.site && other.occurrence == entry.occurrence &&
        other.region == entry.region) {
      return found;
    }
    *slot = (*slot + 1) % kSlots;
  }
}

// Bytes that the lanes of one instruction ask for, each byte counted once.
static u64 distinct_bytes(u32 head) {
  u64 begin[kLanes], end[kLanes];
  u32 count = 0;
  for (u32 i = head; i && count < kLanes; i = logged[i].next) {
    u64 address = logged[i].address;
    u32 at = count++;
    for (; at && begin[at - 1] > address; at--) {
      begin[at] = begin[at - 1];
      end[at] = end[at - 1];
    }
    begin[at] = address;
    end[at] = address + logged[i].size;
  }
  u64 bytes = 0, reached = 0;
  for (u32 i = 0; i < count; i++) {
    u64 from = begin[i] > reached ? begin[i] : reached;
    if (end[i] <= from) continue;
    bytes += end[i] - from;
    reached = end[i];
  }
  return bytes;
}

// Empties the log once no lane of the simdgroup can run.
static void merge_accesses(u32 low, u32 high) {
  if (!logged_count) return;
  merge_stamp++;
  u32 used = 0;
  for (u32 i = 1; i <= logged_count; i++) {
    u32 slot;
    Instruction* found = instruction_of(logged[i], &slot);
    if (found->stamp == merge_stamp) {
      logged[found->tail].next = i;
      found->tail = i;
    } else {
      *found = {merge_stamp, i, i};
      used_slots[used++] = slot;
    }
  }
  for (u32 i = 0; i < used; i++) {
    const Logged& first = logged[instructions[used_slots[i]].head];
    Region* region = &launch->regions[first.region];
    u64 bytes = distinct_bytes(instructions[used_slots[i]].head);
    (first.write ? region->written_merged : region->read_merged) += bytes;
  }
  logged_count = 0;
  for (u32 i = low; i < high; i++) fibers[i].logged = 0;
}
