// What a node's attributes say (Structure), and what the numbers in its `device` input mean (Device).
// docs/operators.md is the reference for names, values and ranges.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels.h"

namespace emu {

enum class Range { kNone, kFixed, kAbsMax };
enum class WeightNoise { kNone, kAdditiveConstant, kPcmRead };
enum class Scaling { kTensor, kColumn, kTile, kTileColumn };
enum class HeadAxis { kNone, kOutput, kInput, kMatrix };

// Half-open interval of rows or columns.
struct Span {
  int64_t begin;
  int64_t end;
  int64_t size() const { return end - begin; }
};

// Every number a device can have; those that its structure does not use keep these values.
struct Device {
  float sigma = 0;
  float sigma_cycle = 0;
  float g_min_us = 0;
  float g_max_us = 1;
  float dac_bound = 1;
  float dac_max = 1;
  float adc_bound = 1;
  float max_bound_factor = 1;
  float max_bound_resolution = 1;
  float weight_noise = 0;
  float output_noise = 0;
  float dac_bits = 0;
  float dac_steps_given = 0;
  float adc_bits = 0;
  float adc_steps_given = 0;

  double dac_steps() const;  // 0: no quantization
  double adc_steps() const;
  float conductance_floor() const { return g_min_us / (g_max_us - g_min_us); }
};

// The operators, as far as their attributes differ.
enum class Operator { kStored, kQuantized, kDynamic, kFaultyWeight };

struct Structure {
  std::string node;
  bool dynamic = false;  // CrossbarMatMulDynamic
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
  Disturbance disturbance = Disturbance::kNone;
  Range dac = Range::kNone;
  Range adc = Range::kNone;
  bool iterative = false;
  WeightNoise weight_noise = WeightNoise::kNone;
  bool output_noise = false;
  int64_t code_bits = 8;   // quantized only
  int64_t block_rows = 0;  // quantized only
  std::vector<std::string> entries;

  // Whether products pass through DAC, noise or ADC at all; otherwise a product is one plain matrix product.
  bool has_periphery() const {
    return dac != Range::kNone || adc != Range::kNone || weight_noise != WeightNoise::kNone || output_noise;
  }
  std::vector<Span> row_tiles(int64_t rows) const { return split(rows, tile_rows); }
  std::vector<Span> column_tiles(int64_t columns) const { return split(columns, tile_columns); }
  // Column segments that must be read one by one; a single one unless a decision is taken per tile.
  std::vector<Span> column_groups(int64_t columns) const;

  // Checks and names the values of the `device` input. Throws Error.
  Device device(const float* values, int64_t count) const;

 private:
  std::vector<Span> split(int64_t size, int64_t largest) const;
};

// Reads attributes through the given functions, so that nodes and the ctypes helpers share one parser. Throws Error.
Structure parse_structure(const std::string& node, Operator kind,
                          const std::function<int64_t(const char*)>& int_attribute,
                          const std::function<std::string(const char*)>& string_attribute);

}  // namespace emu
