#include "controls.h"

#include <cmath>
#include <sstream>

namespace emu {

namespace {

constexpr int64_t kLargest = 0xFFFFFFFFll;

[[noreturn]] void fail(const Structure& structure, const char* input, const std::string& problem) {
  throw Error("node '" + structure.node + "', input '" + input + "' " + problem + ".");
}

[[noreturn]] void wrong_shape(const Structure& structure, const char* input, const Shape& shape,
                              const std::string& expected) {
  fail(structure, input, "has shape " + to_string(shape) + ", expected " + expected);
}

std::string shown(double value) {
  std::ostringstream text;
  text << value;
  return std::isnan(value) ? "nan" : text.str();
}

// A control input of the type that the contract says; its value is null where the operator has none of that name.
Tensor control(const Structure& structure, const Context& context, const char* name) {
  const int place = input_place(structure.kind, name);
  if (place < 0) return {};
  Tensor tensor = context.input(static_cast<size_t>(place));
  const ElementType type = operator_row(structure.kind).inputs[static_cast<size_t>(place)].type;
  if (tensor.element_type != type) {
    fail(structure, name, std::string("is of another type, expected ") + (type == kFloat ? "float32" : "int64"));
  }
  return tensor;
}

int64_t scalar(const Structure& structure, const Context& context, const char* name) {
  const Tensor tensor = control(structure, context, name);
  if (!tensor.shape.empty()) wrong_shape(structure, name, tensor.shape, "[], one integer");
  return tensor.ints()[0];
}

uint32_t seed(const Structure& structure, const Context& context, const char* name) {
  const int64_t value = scalar(structure, context, name);
  if (value < 0 || value > kLargest) {
    fail(structure, name, "is " + std::to_string(value) + ", expected 0 to 2^32 - 1");
  }
  return static_cast<uint32_t>(value);
}

float own_strength(const Structure& structure, const Context& context) {
  const Tensor strength = control(structure, context, "strength");
  if (strength.shape != Shape{structure.sites}) {
    wrong_shape(structure, "strength", strength.shape,
                "[" + std::to_string(structure.sites) + "], one number for each site");
  }
  const float own = strength.floats()[structure.site];
  if (!(own >= 0) || !std::isfinite(own)) {
    fail(structure, "strength", "is " + shown(own) + " for this site, expected finite and 0 or greater");
  }
  return own;
}

void read_ranges(const Structure& structure, const Context& context, Controls& controls) {
  const Tensor ranges = control(structure, context, "ranges");
  if (ranges.value == nullptr) return;
  if (ranges.shape != Shape{structure.sites, 3}) {
    wrong_shape(structure, "ranges", ranges.shape,
                "[" + std::to_string(structure.sites) + ", 3], one row for each site");
  }
  const float* row = ranges.floats() + 3 * structure.site;
  controls.calibrated_input = row[0];
  controls.calibrated_low = row[1];
  controls.calibrated_high = row[2];
  if (structure.dac == Range::kCalibrated && !(std::isfinite(row[0]) && row[0] > 0)) {
    fail(structure, "ranges",
         "has the activation " + shown(row[0]) + " for this site, expected finite and > 0: 'emu calibrate' finds it");
  }
  if (structure.adc == Range::kCalibrated && !(std::isfinite(row[1]) && std::isfinite(row[2]) && row[1] < row[2])) {
    fail(structure, "ranges",
         "has the outputs " + shown(row[1]) + " to " + shown(row[2]) +
             " for this site, expected finite and rising: 'emu calibrate' finds them");
  }
}

void read_faults(const Structure& structure, const Context& context, Controls& controls) {
  controls.faults = control(structure, context, "faults");
  if (controls.faults.value == nullptr) return;
  if (controls.faults.shape.size() != 1) wrong_shape(structure, "faults", controls.faults.shape, "[F], a list");
  if (structure.fault_source != FaultSource::kList && controls.faults.size() != 0) {
    fail(structure, "faults",
         "has " + std::to_string(controls.faults.size()) + " numbers, expected none because 'fault_source' is '" +
             structure.text(attribute::fault_source) + "'");
  }
}

// The first sample and the number of samples (0 when it is not given).
void read_sample(const Structure& structure, const Context& context, Controls& controls) {
  const Tensor sample = control(structure, context, "sample");
  if (sample.value == nullptr) return;
  const bool pair = sample.shape.size() == 1 && sample.size() == 2;
  if (!sample.shape.empty() && !pair) wrong_shape(structure, "sample", sample.shape, "[] or [2]");
  const int64_t first = sample.ints()[0];
  const int64_t samples = pair ? sample.ints()[1] : 0;
  const std::string shown_sample = pair ? to_string({first, samples}) : std::to_string(first);
  if (first < 0 || samples < 0 || first > kLargest || samples > kLargest) {
    fail(structure, "sample", "is " + shown_sample + ", expected 0 to 2^32 - 1");
  }
  if (first + std::max<int64_t>(samples, 1) - 1 > kLargest) {
    fail(structure, "sample", "is " + shown_sample + ", expected 0 to 2^32 - 1 for every sample of the batch");
  }
  controls.first_sample = static_cast<uint32_t>(first);
  controls.samples = samples;
}

}  // namespace

Structure structure_of(const NodeInfo& info, Operator kind) {
  Structure structure = parse_structure(
      info.name(), kind, [&](const char* attribute) { return info.int_attribute(attribute); },
      [&](const char* attribute) { return info.string_attribute(attribute, may_be_absent(attribute)); });
  const std::vector<OperatorInput>& inputs = operator_row(kind).inputs;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].constant && !info.input_is_constant(i)) {
      throw Error("node '" + structure.node + "', input '" + inputs[i].name + "': it must be a constant of the graph");
    }
  }
  return structure;
}

Controls read_controls(const Structure& structure, const Context& context) {
  Controls controls;
  const Tensor device = control(structure, context, "device");
  if (device.shape.size() != 1) {
    wrong_shape(structure, "device", device.shape,
                "[" + std::to_string(structure.entries.size()) + "], one number for each name in 'entries'");
  }
  controls.device = structure.device(device.floats(), device.size());
  controls.strength = own_strength(structure, context);
  read_sample(structure, context, controls);
  const int64_t head = scalar(structure, context, "head");
  if (head < -1) fail(structure, "head", "is " + std::to_string(head) + ", expected -1 (all heads) or greater");
  controls.head = head < 0 ? -1 : head / structure.head_share;
  const bool has_heads = structure.head_axis != HeadAxis::kNone;
  if (head >= 0 && has_heads && controls.head >= structure.heads) {
    fail(structure, "head",
         "is " + std::to_string(head) + ", expected below " + std::to_string(structure.heads * structure.head_share) +
             " (" + std::to_string(structure.heads) + " heads, each shared by " + std::to_string(structure.head_share) +
             ")");
  }
  controls.exact = controls.strength == 0 || (head >= 0 && !has_heads);
  read_ranges(structure, context, controls);
  read_faults(structure, context, controls);
  controls.seed = seed(structure, context, "seed");
  controls.read_seed = seed(structure, context, "read_seed");
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
         "is such that the last sample is " + std::to_string(map.end_sample() - 1) + ", expected at most 2^32 - 1");
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
