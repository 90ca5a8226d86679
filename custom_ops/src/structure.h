// What a node's attributes say (Structure), and what the numbers in its `device` input mean (Device).
// docs/operators.md is the reference for names, values and ranges.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"
#include "onnxruntime_abi.h"

namespace emu {

// The inputs of an operator, in order.
struct OperatorInput {
  const char* name;
  ElementType type;
  bool constant;
};
struct OperatorRow {
  const char* name;
  std::vector<OperatorInput> inputs;
};
const OperatorRow& operator_row(Operator kind);
// Index of an input among all of the operator's, -1 where it has none of that name.
int input_place(Operator kind, const std::string& name);

// Runs body(i) for i in [0, count), perhaps in parallel.
using ForEach = std::function<void(int64_t count, const std::function<void(int64_t)>& body)>;

// Half-open interval of rows or columns.
struct Span {
  int64_t begin;
  int64_t end;
  int64_t size() const { return end - begin; }
};

// How a window moves along one axis of an image.
struct WindowAxis {
  int64_t size = 1;
  int64_t stride = 1;
  int64_t dilation = 1;
  int64_t before = 0;  // zeros beside the image
  int64_t after = 0;
};

// Points of measured data: at one time, mean and standard deviation of the conductance for each target.
struct Table {
  std::vector<float> target_us;
  std::vector<std::vector<float>> mean_us;  // [times][points]
  std::vector<std::vector<float>> std_us;
  std::vector<float> time_s;
};

// Mean and standard deviation of something for each target.
struct Curve {
  std::vector<float> target;
  std::vector<float> mean;
  std::vector<float> std;
};

// Every number a device can have; those that its structure does not use keep these values.
struct Device {
  std::vector<float> values;  // as they were given, in the order of the entries

#define EMU_CONTRACT_FIELDS
#include "contract.inc"

  Table table;
  Curve exponents;                           // targets in microsiemens
  std::vector<std::string> parameter_names;  // of a program function
  std::vector<float> parameters;

  float floor() const { return mapping_g_min_us / mapping_g_max_us; }  // r: g_min in units of g_max
};

struct NumberRow;

// What a node says, as it says it; the conditions of the contract look at this.
struct Given {
  Operator kind = Operator::kStored;
  std::vector<int64_t> numbers;    // by attribute; of a choice, the index of its word
  std::vector<std::string> texts;  // by attribute, where it is no integer
  std::vector<bool> there;         // by entry, families included

  int64_t number(int attribute) const { return numbers[static_cast<size_t>(attribute)]; }
  const std::string& text(int attribute) const { return texts[static_cast<size_t>(attribute)]; }
  bool has(int entry) const { return there[static_cast<size_t>(entry)]; }
};

// Where the number of an entry of the `device` input goes.
struct Place {
  const NumberRow* row = nullptr;
  int entry = 0;             // of the row
  int64_t indices[2] = {};   // in the name, in its order
  bool stored = false;       // what is stored depends on it
  bool of_readings = false;  // what is stored depends on it where compensation reads
};

struct Structure {
  std::string node;
  Operator kind = Operator::kStored;

#define EMU_CONTRACT_ATTRIBUTES
#include "contract.inc"

  Disturbance disturbance = Disturbance::kNone;  // of `program`, or of `write`
  std::vector<WindowAxis> window;                // products only; empty: X holds rows
  std::vector<std::string> entries;

  bool dynamic() const { return kind == Operator::kDynamic; }
  bool output_noise() const { return given_.has(entry::read_output_noise); }
  bool input_noise() const { return given_.has(entry::read_input_noise); }
  bool adc_errors() const { return given_.has(entry::adc_gain_sigma) && adc != Range::kNone; }
  // Whether more stands between product and ADC than noise: columns that differ in theirs, outputs that are not linear.
  bool shaped_outputs(const Device& device) const {
    return device.adc_nonlinearity > 0 || device.adc_asymmetry != 0 || device.read_output_noise_spread > 0;
  }
  bool unit_column() const {
    return encoding == Encoding::kOffset && offset_correction == OffsetCorrection::kUnitColumn;
  }
  bool stuck() const { return given_.has(entry::faults_stuck_low) && fault_source == FaultSource::kRandom; }
  // Whether what is written is moved or limited before, and by which numbers: values may have their own.
  bool moves_operand() const {
    return given_.has(entry::write_alpha) || given_.has(entry::write_beta) || given_.has(entry::write_alpha_value) ||
           given_.has(entry::write_beta_value);
  }
  bool sticks_operand() const { return given_.has(entry::write_stuck_low); }
  float alpha(const Device& device) const {
    const bool own = key_axis == KeyAxis::kRows && given_.has(entry::write_alpha_value);
    return own ? device.write_alpha_value : device.write_alpha;
  }
  float beta(const Device& device) const {
    const bool own = key_axis == KeyAxis::kRows && given_.has(entry::write_beta_value);
    return own ? device.write_beta_value : device.write_beta;
  }
  // Whether a product is more than a plain product with the stored values.
  bool has_periphery() const {
    return dac != InputRange::kNone || adc != Range::kNone || read_noise != ReadNoise::kNone ||
           ir_drop == IrDrop::kFormula || output_noise() || input_noise();
  }
  int stored_bits() const;  // of one stored element, for bit flips
  // Bits that may flip; those that a quantized model's codes lack do not count.
  uint32_t usable_fault_mask() const {
    const int64_t codes = kind == Operator::kQuantized ? (int64_t{1} << code_bits) - 1 : -1;
    return static_cast<uint32_t>(fault_mask & codes);
  }
  int64_t slices() const;  // of a weight: arrays that hold it together
  int64_t input_slices(const Device& device) const;
  // Conversions of one output that the slices of an input take.
  int64_t input_readings(const Device& device) const {
    return dac_slice_sum == DacSliceSum::kAnalog ? 1 : input_slices(device);
  }
  // Whether the devices of a pair are read and converted each by itself.
  bool converts_apart() const { return adc_pairs == AdcPairs::kSeparate; }
  // Conductances behind one reading of a value of one slice; 0 where arrays hold numbers.
  int devices() const {
    const bool written = disturbance == Disturbance::kLognormalConductance || disturbance == Disturbance::kClipFormer;
    if (dynamic()) return written ? 2 : 0;
    return encoding == Encoding::kWeight ? 0 : pairs() && !converts_apart() ? 2 : 1;
  }
  bool pairs() const { return encoding == Encoding::kDifferential || encoding == Encoding::kTwoSided; }
  double dac_steps(const Device& device) const;  // 0: no quantization
  double adc_steps(const Device& device) const;
  std::vector<Span> row_tiles(int64_t rows) const { return split(rows, tile_rows); }
  std::vector<Span> column_tiles(int64_t columns) const { return split(columns, tile_columns); }
  // Column segments that must be read one by one; a single one unless a decision is taken per tile.
  std::vector<Span> column_groups(int64_t columns) const;
  // Throws Error where so many rows of an array need more row tiles than noise tells apart.
  void check_row_tiles(int64_t rows) const;
  // Throws Error where an operand with so many row tiles, in all of its matrices, has another number of ranges.
  void check_range_tiles(int64_t tiles, const char* operand) const;
  // Tiles of keys from position `first` on: full ones, wherever the first key lies.
  std::vector<Span> key_tiles(int64_t keys, int64_t largest, int64_t first) const;
  bool decides_per_tile() const { return adc == Range::kAbsmax || bound_management != BoundManagement::kNone; }

  const std::string& text(int attribute) const { return given_.text(attribute); }
  const std::vector<Place>& places() const { return places_; }  // of the entries

  // Checks and names the values of the `device` input. Throws Error.
  Device device(const float* values, int64_t count) const;

 private:
  friend Structure parse_structure(const std::string&, Operator, const std::function<int64_t(const char*)>&,
                                   const std::function<std::string(const char*)>&);
  std::vector<Span> split(int64_t size, int64_t largest) const;
  void put(const Place& place, const std::string& name, float value, Device& device) const;
  void check(const Device& device) const;

  Given given_;
  std::vector<Place> places_;  // of each entry
};

// The bits of a floating-point number: its sign, then its exponent, then its mantissa, lowest.
struct FloatType {
  int exponent = 8;
  int mantissa = 23;
  bool has_infinity = true;
  int bits() const { return 1 + exponent + mantissa; }
};
// Of what bit flips hit; float32 unless it says otherwise.
FloatType float_type(FaultStorage storage);

// Whether files written by earlier versions lack an attribute: a string is then empty.
bool may_be_absent(const char* attribute);
// What a number is then; nothing where it must be there.
std::optional<int64_t> number_if_absent(const char* attribute);

// Reads attributes through the given functions, so that nodes and the ctypes helpers share one parser. Throws Error.
Structure parse_structure(const std::string& node, Operator kind,
                          const std::function<int64_t(const char*)>& int_attribute,
                          const std::function<std::string(const char*)>& string_attribute);

}  // namespace emu
