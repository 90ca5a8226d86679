// What a node's attributes say (Structure), and what the numbers in its `device` input mean (Device).
// docs/operators.md is the reference for names, values and ranges.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels.h"

namespace emu {

enum class Range { kNone, kFixed, kAbsMax, kCalibrated, kRows, kGranular };
enum class WeightNoise { kNone, kAdditiveConstant, kPcmRead, kProportional };
enum class Scaling { kTensor, kColumn, kTile, kTileColumn };
enum class HeadAxis { kNone, kOutput, kInput, kMatrix };
enum class FaultSource { kNone, kRandom, kList };
enum class FaultStorage { kNone, kInt, kFloat32 };
enum class Protection { kNone, kSecded, kSecdedZero };
enum class Compensation { kNone, kGlobal, kGlobalExact, kColumn, kColumnExact };
enum class IrDrop { kNone, kFormula, kNetwork };

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

// Every number a device can have; those that its structure does not use keep these values.
struct Device {
  std::vector<float> values;  // as they were given, in the order of the entries

  float sigma = 0;  // of program, or of write for a dynamic site
  float sigma_cycle = 0;
  float sigma_off = 0;
  float scale = 1;
  float c[5] = {};
  float reference_us = 1;
  float current_max_na = 1;
  float program_time_s = 0;
  float modifier = 0;
  float g_min_us = 0;
  float g_max_us = 1;
  float cell_bits = 0;
  float percentile = 0;  // 0: the largest value, not a percentile
  float drift_time_s = 0;
  float drift_scale = 1;
  float drift_read_scale = 1;
  float nu = 0;
  float nu_sigma = 0;
  float t0_s = 1;
  float ber = 0;
  float stuck_low = 0;
  float stuck_high = 0;
  float gamma = 0;
  float alpha = 0;
  float beta = 1;
  float write_bits = 0;
  float dac_bits = 0;
  float dac_steps_given = 0;
  float dac_bound = 1;
  float dac_max = 1;
  float dac_limit = 0;  // 0: none
  float adc_bits = 0;
  float adc_steps_given = 0;
  float adc_bound = 1;
  float gain_sigma = 0;
  float offset_sigma = 0;
  float max_bound_factor = 1;
  float max_bound_resolution = 1;
  float weight_noise = 0;
  float output_noise = 0;
  float input_noise = 0;
  float ir_drop = 0;
  float ir_drop_ratio = 1;
  float row_ohm = 0;
  float column_ohm = 0;
  Table table;
  std::string parameters_json;  // of a program function

  float floor() const { return g_min_us / g_max_us; }  // r: g_min in units of g_max
};

// The operators, as far as their attributes differ.
enum class Operator { kStored, kQuantized, kDynamic, kFaultyWeight };

struct Entry;

// Where the number of an entry of the `device` input goes.
struct Place {
  const Entry* known = nullptr;  // else one of a family of names:
  enum Family { kCoefficient, kTarget, kTableTime, kMean, kStd, kParameter } family = kParameter;
  int64_t first = -1;  // index in the name, -1: none
  int64_t second = -1;
  bool stored = false;       // what is stored depends on it
  bool of_readings = false;  // what is stored depends on it where compensation reads
};

struct Structure {
  std::string node;
  Operator kind = Operator::kStored;
  int64_t site = 0;
  int64_t array = 0;
  int64_t sites = 1;
  int64_t sample_axis = 0;
  int64_t heads = 0;
  HeadAxis head_axis = HeadAxis::kNone;
  int64_t head_groups = 1;
  int64_t head_share = 1;
  int64_t tile_rows = 0;
  int64_t tile_columns = 0;
  bool balanced = false;
  Scaling scaling = Scaling::kTensor;
  FaultSource fault_source = FaultSource::kNone;
  FaultStorage fault_storage = FaultStorage::kNone;
  int64_t fault_bits = 8;
  bool fault_asymmetric = false;
  bool fault_per_column = false;
  uint64_t fault_mask = 0;
  Protection protection = Protection::kNone;
  Encoding encoding = Encoding::kWeight;
  bool unit_column = false;
  int64_t weight_bits = 0;
  int64_t slice_bits = 0;
  Disturbance disturbance = Disturbance::kNone;
  std::string program_function;
  bool clip_to_range = false;
  Drift drift = Drift::kNone;
  bool net_pairs = false;
  Compensation compensation = Compensation::kNone;
  bool write_cells = false;
  bool write_per_sample = false;
  Range dac = Range::kNone;
  bool dac_offset_binary = false;
  int64_t dac_slice_bits = 0;
  Range adc = Range::kNone;
  AdcCode adc_code = AdcCode::kSignMagnitude;
  int64_t adc_columns = 1;
  bool iterative = false;
  WeightNoise weight_noise = WeightNoise::kNone;
  IrDrop ir_drop = IrDrop::kNone;
  int64_t code_bits = 8;           // quantized only
  int64_t block_rows = 0;          // quantized only
  std::vector<WindowAxis> window;  // products only; empty: X holds rows
  std::vector<std::string> entries;

  bool dynamic() const { return kind == Operator::kDynamic; }
  bool has(const char* entry) const;
  bool output_noise() const { return has_output_noise_; }
  bool input_noise() const { return has_input_noise_; }
  bool adc_errors() const { return has_adc_errors_; }
  bool stuck() const { return has_stuck_; }
  // Whether a product is more than a plain product with the stored values.
  bool has_periphery() const {
    return dac != Range::kNone || adc != Range::kNone || weight_noise != WeightNoise::kNone ||
           ir_drop == IrDrop::kFormula || has_output_noise_ || has_input_noise_;
  }
  int stored_bits() const;  // of one stored element, for bit flips
  int64_t slices() const;   // of a weight: arrays that hold it together
  int64_t input_slices(const Device& device) const;
  bool pairs() const { return encoding == Encoding::kDifferential || encoding == Encoding::kTwoSided; }
  double dac_steps(const Device& device) const;  // 0: no quantization
  double adc_steps(const Device& device) const;
  std::vector<Span> row_tiles(int64_t rows) const { return split(rows, tile_rows); }
  std::vector<Span> column_tiles(int64_t columns) const { return split(columns, tile_columns); }
  // Column segments that must be read one by one; a single one unless a decision is taken per tile.
  std::vector<Span> column_groups(int64_t columns) const;

  const std::vector<Place>& places() const { return places_; }  // of the entries

  // Checks and names the values of the `device` input. Throws Error.
  Device device(const float* values, int64_t count) const;

 private:
  friend Structure parse_structure(const std::string&, Operator, const std::function<int64_t(const char*)>&,
                                   const std::function<std::string(const char*)>&);
  std::vector<Span> split(int64_t size, int64_t largest) const;
  void check_entries(const std::vector<std::string>& needed) const;
  void check_table() const;
  void require(const std::string& entry) const;
  void put(const Place& place, const std::string& name, float value, Device& device, std::string& parameters) const;
  void check_device(const Device& device) const;

  bool has_output_noise_ = false;
  bool has_input_noise_ = false;
  bool has_adc_errors_ = false;
  bool has_stuck_ = false;
  int timed_ = 0;  // a model whose coefficients depend on the time
  int64_t table_times_ = 0;
  int64_t table_points_ = 0;
  std::vector<Place> places_;  // of each entry
  std::unordered_map<std::string, size_t> index_of_;
};

// Whether files written by earlier versions lack a string attribute, which is then empty.
bool may_be_absent(const char* attribute);

// Reads attributes through the given functions, so that nodes and the ctypes helpers share one parser. Throws Error.
Structure parse_structure(const std::string& node, Operator kind,
                          const std::function<int64_t(const char*)>& int_attribute,
                          const std::function<std::string(const char*)>& string_attribute);

}  // namespace emu
