// The control inputs of one run, checked; and which sample each row of an activation belongs to.
#pragma once

#include <cstdint>

#include "ort.h"
#include "structure.h"

namespace emu {

struct Controls {
  Device device;
  float strength = 1;          // of this site
  float calibrated_input = 1;  // activation that maps to 1
  float calibrated_low = 0;    // outputs
  float calibrated_high = 0;
  Tensor faults;  // a list; null where the operator has none
  uint32_t seed = 0;
  uint32_t read_seed = 0;
  uint32_t first_sample = 0;
  int64_t samples = 0;  // in the batch; 0 when not given
  int64_t head = -1;    // index of the head at this site, or -1 for all

  // Whether this site does anything but the exact product.
  bool exact = false;
};

// The checked attributes of a node of which the inputs that must be constant are. Throws Error.
Structure structure_of(const NodeInfo& info, Operator kind);

// Reads the control inputs of an operator. Throws Error.
Controls read_controls(const Structure& structure, const Context& context);

struct SampleRow {
  uint32_t sample;
  uint64_t row;
};

// docs/operators.md "Samples", for arrays whose leading dimensions are given (all that index rows).
class SampleMap {
 public:
  SampleMap(const Shape& leading, int64_t sample_axis, const Controls& controls);
  SampleRow locate(int64_t row) const;
  int64_t rows_per_sample() const { return factor_ * outer_ * rest_; }
  // One past the index of the last sample.
  int64_t end_sample() const { return constant_ ? 1 : static_cast<int64_t>(first_sample_) + axis_ / factor_; }

 private:
  bool constant_ = false;  // no axis carries samples
  int64_t outer_ = 1;      // size of the dimensions before the sample axis
  int64_t axis_ = 1;       // size of the sample axis
  int64_t rest_ = 1;       // size of the dimensions after it
  int64_t factor_ = 1;     // indices of the axis that share a sample
  uint32_t first_sample_ = 0;
};

// Throws Error if a sample index would not fit the counter.
void check_samples(const Structure& structure, const SampleMap& map);
// Throws Error if a row index would not fit the counter. blocks_per_row: random blocks in each row.
void check_counter_range(const Structure& structure, const SampleMap& map, int64_t rows, uint64_t blocks_per_row);

}  // namespace emu
