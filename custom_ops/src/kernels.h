// The row-wise loops behind both operators. One table of functions per instruction set, chosen when the library loads.
#pragma once

#include <cstdint>

#include "philox.h"

namespace emu {

enum class Disturbance : int {
  kNone,
  kLognormal,
  kLognormalMeanCorrected,
  kLognormalConductance,
  kGaussProportional,
  kGaussRange
};

// One row of stored values, docs/operators.md "What is stored".
struct StoreRow {
  Disturbance model = Disturbance::kNone;
  float sigma = 0;              // already times strength
  float sigma_cycle = 0;        // already times strength
  float conductance_floor = 0;  // r = g_min / (g_max - g_min)
  bool normalize = false;       // divide the result by its scale
  Counter device;               // streams of the (positive) device; the negative ones are the next stream number
  Counter cycle;
};

// How outputs of a tile are read, docs/operators.md "What is read", steps 4, 5 and 7.
struct ReadRow {
  bool noisy = false;
  float noise_std = 0;                    // standard deviation of the whole row, or
  const float* noise_std_each = nullptr;  // of each column
  Counter noise;
  int64_t first_column = 0;  // column of the array at which the row segment begins
  enum class Range { kNone, kFixed, kAbsMax } range = Range::kNone;
  double steps = 0;  // 0: no quantization
  float bound = 0;
  bool stop_if_saturated = false;  // leave y alone and report
  float factor = 1;                // alpha * b
  const float* scales = nullptr;   // s of each column
  bool accumulate = false;
};

struct InputRow {
  float inverse = 1;  // 1 / (alpha * b)
  double steps = 0;   // 0: no quantization
  float bound = 0;
  bool clip = false;
};

struct Kernels {
  const char* name;
  // count blocks of four words from counter.block on.
  void (*words)(const Counter& counter, int64_t count, uint32_t* out);
  // Normals of columns [first_column, first_column + count) of the row that begins at counter.block.
  void (*normals)(const Counter& counter, int64_t first_column, int64_t count, float* out);
  void (*store_row)(const StoreRow& row, const float* w, const float* scales, int64_t first_column, int64_t count,
                    float* out);
  float (*largest_magnitude)(const float* x, int64_t count);
  // magnitudes[i] = max(magnitudes[i], |x[i]|)
  void (*update_magnitudes)(const float* x, int64_t count, float* magnitudes);
  float (*sum_of_squares)(const float* x, int64_t count);
  void (*absolute)(const float* x, int64_t count, float* out);
  void (*square)(const float* x, int64_t count, float* out);
  void (*quantize_input)(const InputRow& row, const float* x, int64_t count, float* out);
  // out[i] = sqrt(base + c2 * v[i]) * strength
  void (*noise_std)(const float* v, float c2, float base, float strength, int64_t count, float* out);
  // Disturbs p (in place), converts it and adds it to, or writes it into, y. Returns whether the row saturated.
  bool (*read_row)(const ReadRow& row, float* p, int64_t count, float* y);
};

// The table in use.
const Kernels& kernels();
// Forces a table by name ("baseline", "avx2", "avx512"); false if it is unknown or this processor cannot run it.
bool use_kernels(const char* name);

}  // namespace emu
