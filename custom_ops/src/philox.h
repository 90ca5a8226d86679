// Philox4x32-10 (Salmon et al., SC 2011) as plain scalar code, and the names of the noise streams.
// The vector version in normals.inl gives the same words; docs/operators.md defines counters and keys.
#pragma once

#include <cstdint>

namespace emu {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

// What random numbers are for; the negative device of a pair has the next number, and the cells of the unit column
// those of other cells plus kUnitColumn.
#define EMU_CONTRACT_STREAMS
#include "contract.inc"

// Everything that names a row of random numbers but the block index, which runs along the row.
struct Counter {
  uint32_t key0 = 0;
  uint32_t key1 = 0;
  uint64_t block = 0;       // first block of the row: c0 and, for stored arrays, c1
  uint32_t c1 = 0;          // sample index of run-time noise; ignored for stored arrays
  bool wide_block = false;  // true for stored arrays: the high half of the block goes to c1
  uint32_t c2 = 0;
  uint32_t c3 = 0;
};

inline void philox(const Counter& counter, uint64_t block, uint32_t words[4]) {
  uint32_t c0 = static_cast<uint32_t>(block);
  uint32_t c1 = counter.wide_block ? static_cast<uint32_t>(block >> 32) : counter.c1;
  uint32_t c2 = counter.c2;
  uint32_t c3 = counter.c3;
  uint32_t k0 = counter.key0;
  uint32_t k1 = counter.key1;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
    const uint64_t p1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

}  // namespace emu
