// The functions that clang's -fsanitize=undefined calls. Their data is clang's ABI.
//
// They end the threadgroup: a check that may return keeps loads from being merged.
#pragma once
#include "hooks.h"

struct SourceLocation {
  const char* file;
  u32 line, column;
};

struct TypeName {
  u16 kind, info;
  char name[1];
};

struct IndexData {
  SourceLocation location;
  TypeName* array;
  TypeName* index;
};

struct TypedData {
  SourceLocation location;
  TypeName* type;
};

#define UNDEFINED(name) EXPORT [[noreturn]] void __ubsan_handle_##name##_abort

UNDEFINED(out_of_bounds)(IndexData* data, u64 index) {
  note(ARRAY_INDEX, CALLER, 0, data->array->name, (i64)index);
  abandon();
}

UNDEFINED(local_out_of_bounds)() {
  note(PRIVATE_BOUNDS, CALLER, 0, "");
  abandon();
}

UNDEFINED(shift_out_of_bounds)(TypedData* data, u64, u64 by) {
  note(SHIFT, CALLER, 0, data->type->name, (i64)by);
  abandon();
}

UNDEFINED(divrem_overflow)(TypedData* data, u64, u64) {
  note(DIVISION, CALLER, 0, data->type->name);
  abandon();
}

// Names the buffer in `text`, if the address lies in one.
static void name_owner(Note* made, u8* address) {
  for (u32 i = 0; made && i < launch->region_count; i++) {
    const Region& region = launch->regions[i];
    if (distance(region, address)) continue;
    copy_text(made->text, region.name, sizeof made->text);
    made->number[1] = address - region.base;
  }
}

UNDEFINED(type_mismatch_v1)(TypedData* data, u8* address) {
  Note* made = note(MISALIGNED, CALLER, 0, data->type->name, (u64)address % 64);
  name_owner(made, address);
  abandon();
}

UNDEFINED(alignment_assumption)(TypedData* data, u8* address) {
  Note* made = note(MISALIGNED, CALLER, 0, data->type->name, (u64)address % 64);
  name_owner(made, address);
  abandon();
}
