// Values held by crossbars: their scales, and their disturbance when written.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "structure.h"

namespace emu {

// Runs body(i) for i in [0, count), perhaps in parallel.
using ForEach = std::function<void(int64_t count, const std::function<void(int64_t)>& body)>;

// Scales of one matrix W [rows, columns]: for row tile t and column n, scales[t * columns + n].
std::vector<float> weight_scales(const Structure& structure, const float* w, int64_t rows, int64_t columns);

// What the stored values depend on; equal keys give equal values.
struct StoreKey {
  float strength = 1;
  float sigma = 0;
  float sigma_cycle = 0;
  float conductance_floor = 0;
  uint32_t seed = 0;
  uint32_t read_seed = 0;  // 0 where only cycle-to-cycle variation would depend on it

  bool operator==(const StoreKey& other) const {
    return strength == other.strength && sigma == other.sigma && sigma_cycle == other.sigma_cycle &&
           conductance_floor == other.conductance_floor && seed == other.seed && read_seed == other.read_seed;
  }
};

StoreKey store_key(const Structure& structure, const Device& device, float strength, uint32_t seed, uint32_t read_seed);

// Whether storing changes nothing.
bool stores_exactly(const Structure& structure, const StoreKey& key);

// Position of tile t, column group g in programmed values: blocks [rows of t, columns of g], row-major, one after
// another.
int64_t block_offset(const Span& row_tile, const Span& column_group, int64_t columns);

// Writes W [rows, columns] into out, in the layout of block_offset, disturbed; divided by the scales if normalize.
// dynamic_row: for an operand written at run time, the sample and the first row within the sample; null for stored
// weights.
struct DynamicRow {
  uint32_t sample;
  uint64_t first_row;
};
void write_values(const Structure& structure, const StoreKey& key, const float* w, int64_t rows, int64_t columns,
                  const std::vector<Span>& row_tiles, const std::vector<Span>& column_groups, const float* scales,
                  bool normalize, const DynamicRow* dynamic_row, const ForEach& for_each, float* out);

}  // namespace emu
