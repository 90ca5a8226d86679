#include "controls.h"

#include <cmath>
#include <sstream>

namespace emu {

namespace {

constexpr int64_t kLargest = 0xFFFFFFFFll;
constexpr int64_t kNumbersOfRange = 4;      // as CalibratedRange has them
constexpr int64_t kMostMatrices = 1 << 16;  // of one sample

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
  const int64_t count = structure.range_tiles * structure.range_slices * structure.range_polarities;
  const Tensor ranges = control(structure, context, "ranges");
  if (ranges.value == nullptr) {
    controls.ranges.resize(static_cast<size_t>(count));
    return;
  }
  const int64_t width = ranges.shape.size() == 2 ? ranges.shape[1] : 0;
  if (width == 0 || ranges.shape[0] != structure.sites || width % kNumbersOfRange != 0 ||
      width < count * kNumbersOfRange) {
    wrong_shape(structure, "ranges", ranges.shape,
                "[" + std::to_string(structure.sites) + ", " + std::to_string(kNumbersOfRange) +
                    " R], one row for each site and R at least " + std::to_string(count));
  }
  const float* row = ranges.floats() + width * structure.site;
  for (int64_t i = 0; i < count; ++i, row += kNumbersOfRange) {
    const CalibratedRange own{row[0], row[1], row[2], row[3]};
    const bool first_of_tile = i % (structure.range_slices * structure.range_polarities) == 0;
    if (structure.dac == InputRange::kCalibrated && first_of_tile && !(std::isfinite(own.input) && own.input > 0)) {
      fail(structure, "ranges",
           "has the activation " + shown(own.input) +
               " for this site, expected finite and > 0: 'emu calibrate' finds it");
    }
    if (structure.adc == Range::kCalibrated &&
        !(std::isfinite(own.low) && std::isfinite(own.high) && own.low < own.high)) {
      fail(structure, "ranges",
           "has the outputs " + shown(own.low) + " to " + shown(own.high) +
               " for this site, expected finite and rising: 'emu calibrate' finds them");
    }
    if (structure.write_scaling == WriteScaling::kCalibrated && i == 0 &&
        !(std::isfinite(own.operand) && own.operand > 0)) {
      fail(structure, "ranges",
           "has the operand " + shown(own.operand) +
               " for this site, expected finite and > 0: 'emu calibrate' finds it");
    }
    controls.ranges.push_back(own);
  }
}

void read_faults(const Structure& structure, const Context& context, Controls& controls) {
  const Tensor faults = control(structure, context, "faults");
  if (faults.value == nullptr) return;
  if (faults.shape.size() != 2 || faults.shape[1] != 2) {
    wrong_shape(structure, "faults", faults.shape, "[F, 2], an array and a fault in each row");
  }
  controls.faults = own_faults(structure, faults.ints(), faults.shape[0]);
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

void read_positions(const Structure& structure, const Context& context, Controls& controls) {
  const Tensor position = control(structure, context, "position");
  if (position.value != nullptr) {
    if (position.shape.size() != 1) wrong_shape(structure, "position", position.shape, "[b], one for each sample");
    controls.positions.assign(position.ints(), position.ints() + position.size());
  }
  const Tensor keys = control(structure, context, "keys");
  if (keys.value == nullptr) return;
  if (keys.shape.size() != 2 || keys.shape[1] != 2) {
    wrong_shape(structure, "keys", keys.shape, "[b, 2], two for each sample");
  }
  if (structure.key_axis == KeyAxis::kNone && keys.size() != 0) {
    fail(structure, "keys", "is given, expected none because 'key_axis' is 'none'");
  }
  for (int64_t i = 0; i < keys.shape[0]; ++i) {
    const int64_t* row = keys.ints() + 2 * i;
    if (row[0] < 0 || row[0] > kLargest || row[1] < 0 || row[1] > kLargest) {
      fail(structure, "keys", "is " + to_string({row[0], row[1]}) + " for a sample, expected 0 to 2^32 - 1");
    }
    controls.keys.push_back({row[0], row[1]});
  }
}

}  // namespace

Structure structure_of(const NodeInfo& info, Operator kind) {
  Structure structure = parse_structure(
      info.name(), kind,
      [&](const char* attribute) { return info.int_attribute(attribute, number_if_absent(attribute)); },
      [&](const char* attribute) { return info.string_attribute(attribute, may_be_absent(attribute)); });
  const std::vector<OperatorInput>& inputs = operator_row(kind).inputs;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].constant && !info.input_is_constant(i)) {
      throw Error("node '" + structure.node + "', input '" + inputs[i].name + "': it must be a constant of the graph");
    }
  }
  return structure;
}

std::vector<int64_t> own_faults(const Structure& structure, const int64_t* rows, int64_t count) {
  std::vector<int64_t> own;
  for (int64_t i = 0; i < count; ++i) {
    if (rows[2 * i] == structure.array) own.push_back(rows[2 * i + 1]);
  }
  if (!own.empty() && structure.fault_source == FaultSource::kNone) {
    fail(structure, "faults",
         "has " + std::to_string(own.size()) + " faults of array " + std::to_string(structure.array) +
             ", expected none because 'fault_source' is 'none'");
  }
  return own;
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
  read_positions(structure, context, controls);
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

SampleMap::SampleMap(const Shape& leading, int64_t sample_axis, const Controls& controls, bool of_stack)
    : controls_(&controls) {
  if (sample_axis < 0) {
    constant_ = true;
    outer_ = product(leading);
    positions_ = leading.empty() ? 1 : leading.back();
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
  // Along the last axis that does not count samples, else along what of that axis belongs to one.
  const bool last = axis + 1 == leading.size();
  samples_last_ = last && axis > 0 && !of_stack;
  positions_ = samples_last_ ? outer_ : last ? factor_ : leading.back();
}

SampleMap::Index SampleMap::index(int64_t row) const {
  if (constant_) return {0, row};
  const int64_t outer = row / (axis_ * rest_);
  const int64_t index = (row / rest_) % axis_;
  const int64_t in_rest = row % rest_;
  return {index / factor_, (outer * factor_ + index % factor_) * rest_ + in_rest};
}

SampleRow SampleMap::locate(int64_t row) const {
  const Index place = index(row);
  const int64_t stride = samples_last_ ? factor_ : 1;  // of positions
  const int64_t position = place.within / stride % std::max<int64_t>(1, positions_);
  const int64_t matrix = samples_last_ ? place.within % factor_ : place.within / std::max<int64_t>(1, positions_);
  const std::vector<int64_t>& starts = controls_->positions;
  const int64_t start = starts.empty() ? 0 : starts[starts.size() == 1 ? 0 : static_cast<size_t>(place.sample)];
  return {first_sample() + static_cast<uint32_t>(place.sample), static_cast<uint32_t>(start + position),
          static_cast<uint32_t>(matrix)};
}

void check_samples(const Structure& structure, const SampleMap& map) {
  if (map.end_sample() - 1 > kLargest) {
    fail(structure, "sample",
         "is such that the last sample is " + std::to_string(map.end_sample() - 1) + ", expected at most 2^32 - 1");
  }
}

void check_places(const Structure& structure, const SampleMap& map, const Controls& controls) {
  const auto check_count = [&](const char* input, size_t given) {
    if (given > 1 && static_cast<int64_t>(given) != map.samples()) {
      fail(structure, input,
           "is for " + std::to_string(given) + " samples, expected none, 1 or " + std::to_string(map.samples()));
    }
  };
  check_count("position", controls.positions.size());
  check_count("keys", controls.keys.size());
  const int64_t rows = map.positions();
  if (rows == 0 || map.rows_of_sample() == 0) return;
  for (const int64_t start : controls.positions) {
    if (start <= -rows || start > kLargest + 1 - rows) {
      fail(structure, "position",
           "is " + std::to_string(start) + " for the first of " + std::to_string(rows) +
               " rows, expected positions that end between 0 and 2^32 - 1");
    }
  }
  if (rows > kLargest + 1 || map.rows_of_sample() / rows > kMostMatrices) {
    throw Error("node '" + structure.node + "': one sample has " + std::to_string(map.rows_of_sample() / rows) +
                " matrices of " + std::to_string(rows) + " rows, and noise tells " + std::to_string(kMostMatrices) +
                " of 2^32 apart; split the input.");
  }
}

}  // namespace emu
