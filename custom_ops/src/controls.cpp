#include "controls.h"

#include <cmath>
#include <sstream>

namespace emu {

namespace {

constexpr int64_t kLargest = 0xFFFFFFFFll;

[[noreturn]] void fail(const Structure& structure, const char* input, const std::string& problem) {
  throw Error("node '" + structure.node + "', control input '" + input + "': " + problem);
}

Tensor typed_input(const Structure& structure, const Context& context, size_t index, const char* name, int type) {
  Tensor tensor = context.input(index);
  if (tensor.element_type != type) {
    fail(structure, name, std::string("its elements must be ") + (type == kFloat ? "float32" : "int64"));
  }
  return tensor;
}

int64_t scalar(const Structure& structure, const Context& context, size_t index, const char* name, int64_t low) {
  const Tensor tensor = typed_input(structure, context, index, name, kInt64);
  if (!tensor.shape.empty())
    fail(structure, name, "its shape is " + to_string(tensor.shape) + "; expected a scalar []");
  const int64_t value = tensor.ints()[0];
  if (value < low || value > kLargest) {
    fail(structure, name,
         "it is " + std::to_string(value) + "; expected " + std::to_string(low) + " to " + std::to_string(kLargest));
  }
  return value;
}

void read_ranges(const Structure& structure, const Context& context, size_t index, Controls& controls) {
  const Tensor ranges = typed_input(structure, context, index, "ranges", kFloat);
  if (ranges.shape != Shape{structure.sites, 3}) {
    fail(structure, "ranges",
         "its shape is " + to_string(ranges.shape) + "; expected [" + std::to_string(structure.sites) + ", 3]");
  }
  const float* row = ranges.floats() + 3 * structure.site;
  controls.calibrated_input = row[0];
  controls.calibrated_low = row[1];
  controls.calibrated_high = row[2];
  const bool input = std::isfinite(row[0]) && row[0] > 0;
  const bool output = std::isfinite(row[1]) && std::isfinite(row[2]) && row[1] < row[2];
  if ((structure.dac == Range::kCalibrated && !input) || (structure.adc == Range::kCalibrated && !output)) {
    fail(structure, "ranges",
         "row " + std::to_string(structure.site) +
             " holds no ranges; calibrate the model with 'emu calibrate', or give an input above 0 and rising outputs");
  }
}

// The first sample and the number of samples (0 when it is not given).
void read_sample(const Structure& structure, const Context& context, size_t index, Controls& controls) {
  const Tensor sample = typed_input(structure, context, index, "sample", kInt64);
  const bool pair = sample.shape.size() == 1 && sample.size() == 2;
  if (!sample.shape.empty() && !pair) {
    fail(structure, "sample", "its shape is " + to_string(sample.shape) + "; expected [] or [2]");
  }
  const int64_t first = sample.ints()[0];
  const int64_t samples = pair ? sample.ints()[1] : 0;
  if (first < 0 || samples < 0 || first > kLargest || first + std::max<int64_t>(samples, 1) - 1 > kLargest) {
    fail(structure, "sample",
         "the first sample is " + std::to_string(first) + "; expected 0 to " + std::to_string(kLargest) +
             " for every sample of the batch");
  }
  controls.first_sample = static_cast<uint32_t>(first);
  controls.samples = samples;
}

}  // namespace

int faults_place(Operator kind) { return kind == Operator::kDynamic ? -1 : kind == Operator::kFaultyWeight ? 2 : 3; }

Controls read_controls(const Structure& structure, const Context& context, size_t first_input) {
  Controls controls;
  const Tensor device = typed_input(structure, context, first_input, "device", kFloat);
  if (device.shape.size() != 1) {
    fail(structure, "device",
         "its shape is " + to_string(device.shape) + "; expected [" + std::to_string(structure.entries.size()) + "]");
  }
  controls.device = structure.device(device.floats(), device.size());

  const Tensor strength = typed_input(structure, context, first_input + 1, "strength", kFloat);
  if (strength.shape.size() != 1 || strength.size() != structure.sites) {
    fail(structure, "strength",
         "its shape is " + to_string(strength.shape) + "; expected [" + std::to_string(structure.sites) +
             "], one factor per site");
  }
  controls.strength = strength.floats()[structure.site];
  if (!(controls.strength >= 0) || !std::isfinite(controls.strength)) {
    std::ostringstream value;
    value << controls.strength;
    fail(structure, "strength",
         "entry " + std::to_string(structure.site) + " is " + value.str() + "; expected a finite number from 0");
  }

  const bool products = structure.kind != Operator::kFaultyWeight;
  size_t next = first_input + 2;
  if (products) read_ranges(structure, context, next++, controls);
  if (faults_place(structure.kind) >= 0) {
    controls.faults = typed_input(structure, context, next++, "faults", kInt64);
    const bool listed = structure.fault_source == FaultSource::kList;
    if (controls.faults.shape.size() != 1 || (!listed && controls.faults.size() != 0)) {
      fail(structure, "faults",
           "its shape is " + to_string(controls.faults.shape) + "; expected " + (listed ? "[F]" : "[0]"));
    }
  }
  controls.seed = static_cast<uint32_t>(scalar(structure, context, next++, "seed", 0));
  controls.read_seed = static_cast<uint32_t>(scalar(structure, context, next++, "read_seed", 0));
  if (products) read_sample(structure, context, next++, controls);
  const int64_t head = scalar(structure, context, next, "head", -1);
  controls.head = head < 0 ? -1 : head / structure.head_share;
  const bool has_heads = structure.head_axis != HeadAxis::kNone;
  if (head >= 0 && has_heads && controls.head >= structure.heads) {
    fail(structure, "head",
         "it is " + std::to_string(head) + "; expected -1 for all heads, or less than " +
             std::to_string(structure.heads * structure.head_share));
  }
  controls.exact = controls.strength == 0 || (head >= 0 && !has_heads);
  return controls;
}

SampleMap::SampleMap(const Shape& leading, int64_t sample_axis, const Controls& controls) {
  if (sample_axis < 0) {
    constant_ = true;
    outer_ = product(leading);
    return;
  }
  first_sample_ = controls.first_sample;
  if (leading.empty()) return;
  const auto axis = std::min<size_t>(static_cast<size_t>(sample_axis), leading.size() - 1);
  outer_ = product(leading, 0, axis);
  axis_ = leading[axis];
  rest_ = product(leading, axis + 1, leading.size());
  const int64_t samples = controls.samples;
  factor_ = samples > 0 && axis_ % samples == 0 && axis_ > 0 ? axis_ / samples : 1;
}

SampleRow SampleMap::locate(int64_t row) const {
  if (constant_) return {0, static_cast<uint64_t>(row)};
  const int64_t outer = row / (axis_ * rest_);
  const int64_t index = (row / rest_) % axis_;
  const int64_t in_rest = row % rest_;
  const int64_t in_sample = (outer * factor_ + index % factor_) * rest_ + in_rest;
  return {first_sample_ + static_cast<uint32_t>(index / factor_), static_cast<uint64_t>(in_sample)};
}

void check_samples(const Structure& structure, const SampleMap& map) {
  if (map.end_sample() - 1 > kLargest) {
    fail(structure, "sample",
         "the last sample of the batch is " + std::to_string(map.end_sample() - 1) + "; expected at most " +
             std::to_string(kLargest));
  }
}

void check_counter_range(const Structure& structure, const SampleMap& map, int64_t rows, uint64_t blocks_per_row) {
  if (rows == 0) return;
  if (static_cast<uint64_t>(map.rows_per_sample()) * blocks_per_row > (uint64_t{1} << 32)) {
    throw Error("node '" + structure.node +
                "': one sample has more values than the noise counter can tell apart (2^34); split the input");
  }
}

}  // namespace emu
