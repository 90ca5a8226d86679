// A node as callers without a session hand it over: plain C, which ctypes and other programs can fill.
#pragma once

#include <cstdint>

namespace emu {

// One attribute of a node: a text, or null and a number.
struct GivenAttribute {
  const char* name;
  const char* text;
  int64_t number;
};

// A node of CrossbarMatMul with its control inputs and W [matrices, rows, columns], for callers without a session. With
// codes it is a node of CrossbarMatMulQuantized, and W what its codes stand for.
struct GivenNode {
  const GivenAttribute* attributes;
  int64_t attribute_count;
  const float* device;
  int64_t entries;
  const int64_t* faults;  // [fault_count, 2]
  int64_t fault_count;
  const float* w;
  int64_t matrices;
  int64_t rows;
  int64_t columns;
  float strength;
  uint32_t seed;
  uint32_t read_seed;
  const int8_t* codes = nullptr;      // as the operator takes them
  const float* scale = nullptr;       // likewise
  const float* zero_point = nullptr;  // likewise
  int64_t scales = 0;                 // number of elements of scale
};

}  // namespace emu
