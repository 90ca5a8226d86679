// The control inputs of one run, checked; and which sample each row of an activation belongs to.
#pragma once

#include <cstdint>

#include "ort.h"
#include "structure.h"

namespace emu {

struct KeyEnds {
  int64_t last;
  int64_t counted;
};

// As the input `ranges` holds them.
struct CalibratedRange {
  float input = 1;  // activation that maps to 1
  float low = -1;   // outputs
  float high = 1;
  float operand = 1;  // magnitude of a written operand that maps to 1
};

struct Controls {
  Device device;
  float strength = 1;                   // of this site
  std::vector<CalibratedRange> ranges;  // [range_tiles, range_slices, range_polarities]
  std::vector<int64_t> faults;          // those of the list that strike this array
  uint32_t seed = 0;
  uint32_t read_seed = 0;
  uint32_t first_sample = 0;
  int64_t samples = 0;  // in the batch; 0 when not given
  // Of each sample (or one for all, or none: 0): the position of its first row.
  std::vector<int64_t> positions;
  // Of each sample (or one for all, or none: all keys, from position 0): the position after its last key, and the one
  // after its last key that counts.
  std::vector<KeyEnds> keys;
  int64_t head = -1;  // index of the head at this site, or -1 for all

  // Whether this site does anything but the exact product.
  bool exact = false;
};

// The checked attributes of a node of which the inputs that must be constant are. Throws Error.
Structure structure_of(const NodeInfo& info, Operator kind);

// Of a list of faults [count, 2], those that strike the array of a node. Throws Error if that has no faults.
std::vector<int64_t> own_faults(const Structure& structure, const int64_t* rows, int64_t count);

// Reads the control inputs of an operator. Throws Error.
Controls read_controls(const Structure& structure, const Context& context);

// Where a row lies: docs/operators.md "Samples".
struct SampleRow {
  uint32_t sample;    // of the stream of samples
  uint32_t position;  // absolute, wrapped to a word
  uint32_t matrix;    // within the sample
};

// docs/operators.md "Samples", for arrays whose leading dimensions are given (all that index rows).
class SampleMap {
 public:
  // of_stack: the last axis holds the rows of a matrix, even if it counts samples.
  SampleMap(const Shape& leading, int64_t sample_axis, const Controls& controls, bool of_stack = false);
  SampleRow locate(int64_t row) const;
  // The sample of a row within the batch, and its index among all rows of that sample.
  struct Index {
    int64_t sample;
    int64_t within;
  };
  Index index(int64_t row) const;
  int64_t rows_of_sample() const { return factor_ * outer_ * rest_; }
  // Rows of one matrix of a sample, whose positions follow each other.
  int64_t positions() const { return positions_; }
  int64_t samples() const { return constant_ ? 1 : axis_ / factor_; }
  uint32_t first_sample() const { return constant_ ? 0 : first_sample_; }
  // One past the index of the last sample.
  int64_t end_sample() const { return constant_ ? 1 : static_cast<int64_t>(first_sample_) + axis_ / factor_; }

 private:
  bool constant_ = false;  // no axis carries samples
  int64_t outer_ = 1;      // size of the dimensions before the sample axis
  int64_t axis_ = 1;       // size of the sample axis
  int64_t rest_ = 1;       // size of the dimensions after it
  int64_t factor_ = 1;     // indices of the axis that share a sample
  int64_t positions_ = 1;
  bool samples_last_ = false;  // they change fastest along the rows
  uint32_t first_sample_ = 0;
  const Controls* controls_;
};

// Throws Error if a sample index would not fit the counter.
void check_samples(const Structure& structure, const SampleMap& map);
// Throws Error if rows have positions that no word holds, or a sample has more matrices than the counter tells apart.
void check_places(const Structure& structure, const SampleMap& map, const Controls& controls);

}  // namespace emu
