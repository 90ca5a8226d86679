// The row-wise loops behind the operators. One table of functions per instruction set, chosen when the library loads.
#pragma once

#include <cmath>
#include <cstdint>

#include "philox.h"

namespace emu {

// What nodes may say, from emu/contract/schema.py.
#define EMU_CONTRACT_ENUMS
#include "contract.inc"

enum class Disturbance : int {
  kNone,
  // Of numbers.
  kLognormal,
  kLognormalMeanCorrected,
  kGaussProportional,
  kGaussRange,
  // Of conductances.
  kLognormalConductance,
  kNormalIndependent,
  kNormalProportional,
  kNormalInverse,
  kUniformIndependent,
  kUniformProportional,
  kUniformInverse,
  kPolynomial,
  kSaturating,
  kLevelShared,
  kResistanceRange,
  kTable,
  kFunction,
  // Of operands written at run time.
  kClipFormer,
};

// From numbers to numbers of limited resolution, or to the target conductance of one device;
// docs/operators.md "Targets".
struct MapRow {
  Encoding encoding = Encoding::kWeight;
  bool negative = false;    // the negative device of a pair
  bool clip = true;         // W/s to [-1, 1]
  float weight_steps = 0;   // 2^(weight_bits - 1) - 1, 0: not rounded
  float level_steps = 0;    // 2^cell_bits - 1, 0: analog
  float slice_steps = 0;    // 2^slice_bits - 1, 0: unsliced
  float slice_divisor = 1;  // 2^(slice * slice_bits)
  float floor = 0;          // r
};

// Numbers disturbed when stored, docs/operators.md "Programming" for `encoding` weight and for written operands.
struct StoreRow {
  Disturbance model = Disturbance::kNone;
  float sigma = 0;        // already times strength
  float sigma_cycle = 0;  // already times strength
  float floor = 0;        // r
  bool moved = false;     // before writing: by alpha r, at most beta
  float alpha = 0;
  float beta = 1;
  float write_steps = 0;  // 2^write.bits - 1, 0: not rounded
  float exponent = 0.5f;  // ClipFormer
  bool cells = false;
  bool normalize = false;    // result in units of the scale (for conductances: of g_max), not of the weight
  float* squares = nullptr;  // if given, g+^2 + g-^2 of conductances goes there
  Counter device;            // streams of the (positive) device; the negative ones are the next stream number
  Counter cycle;
};

// Mean and standard deviation by target, in units of g_max: linear between points, constant outside.
struct CurveRow {
  int points = 0;
  const float* target = nullptr;
  const float* mean = nullptr;
  const float* std = nullptr;
};

// Conductances disturbed when programmed, in units of g_max.
struct ProgramRow {
  Disturbance model = Disturbance::kNone;
  float sigma = 0;  // times strength, like all amplitudes here
  float sigma_cycle = 0;
  float sigma_off = 0;
  float c[5] = {};  // kPolynomial: standard deviation; kSaturating: c[0] (1 - exp(-g c[1]))
  float floor = 0;
  float level_steps = 0;          // kLevelShared
  const float* levels = nullptr;  // kLevelShared: factor of each level
  CurveRow table;                 // kTable
  float lowest = 0;               // result is clipped to these
  float highest = 3.0e38f;
  Counter device;
  Counter cycle;
  Counter second;
};

// A number by the conductance x: clip(slope ln x + offset, low, high) below the joint, a polynomial above it.
struct Fit {
  float joint = 0;
  float slope = 0;
  float offset = 0;
  float low = 0;
  float high = 1;
  float c[4] = {};
};

// Change with time, in units of g_max.
struct DriftRow {
  Drift model = Drift::kNone;
  float strength = 1;
  float scale = 1;
  float read = 0;       // strength * read_scale * sqrt(ln(...)); kLogTime: in microsiemens
  float log_ratio = 0;  // ln of the times that the exponent applies to
  float nu = 0;
  float nu_sigma = 0;  // kRelaxation: of ln tau
  Fit mean_fit;        // kPowerLawFit
  Fit spread_fit;
  Fit read_fit;
  float read_q = 0;  // greater than 0: q / x^power, at most cap, instead of the fit
  float read_power = 0;
  float read_cap = 0;
  CurveRow exponents;  // kPowerLawTable
  float g_max_us = 1;  // kLogTime
  float shift_us = 0;
  float spread_us = 0;
  float final = 0;  // kRelaxation
  float elapsed = 0;
  float lowest = 0;
  float highest = 3.0e38f;
  Counter drift;
  Counter read_noise;
};

struct StuckRow {
  float low = 0;  // probabilities
  float high = 0;
  float floor = 0;
  Counter stuck;
};

// Noise on one row: what its counter has of its own, and the standard deviation.
struct NoiseRow {
  uint64_t block = 0;     // first of the row
  uint32_t position = 0;  // c1; not read where blocks are wide
  float std = 0;
  const float* std_each = nullptr;  // of each column, instead
};

// How outputs of a tile are converted, docs/operators.md "What is read".
struct ReadRow {
  float peak = -1;              // largest magnitude of the row, or -1
  const float* gain = nullptr;  // of the ADC of each column
  const float* offset = nullptr;
  const float* uniforms = nullptr;  // of each column, where it rounds at random
  enum class Range { kNone, kGiven, kAbsmax } range = Range::kNone;
  AdcCode code = AdcCode::kSignMagnitude;
  double steps = 0;  // 0: no quantization
  float low = 0;
  float high = 0;
  bool stop_if_saturated = false;  // leave y alone and report
  float most = 0;                  // largest |y| that does not saturate
  float factor = 1;                // alpha * b * f * h
  const float* scales = nullptr;   // s of each column
  bool accumulate = false;
};

struct InputRow {
  float inverse = 1;  // 1 / (alpha * b)
  double steps = 0;   // 0: no quantization
  float bound = 0;
  bool offset_binary = false;
  bool clip = false;
};

// Inputs as codes of a DAC; see Kernels::encode_input.
struct EncodedRow {
  float sign = 1;         // of the codes
  float squares = 0;      // sum of the squares of the codes
  bool has_rest = false;  // 128 and -128 both occur: what codes lack is in a row of its own
};

// Squares of a row of inputs as codes of one byte, or of two where one value stands out.
struct EncodedSquares {
  float step = 0;  // what one code is worth
  bool wide = false;
};

// All of "What is read" for a product of few columns, in one slice and one tile, whose rows lie side by side.
struct NarrowRead {
  InputRow input;   // but for inverse, which follows from alpha
  float alpha = 0;  // input range; 0: the largest magnitude of each row
  float limit = 0;  // of that, 0: none
  bool noisy = false;
  float weight_variance = 0;  // times the sum of squares of a row's inputs
  float output_variance = 0;
  float strength = 1;
  ReadRow output;          // peak, stop_if_saturated and accumulate are not used; factor: without alpha
  bool marks_lost = true;  // else what is not finite is plain arithmetic
};
constexpr int64_t kMostNarrow = 4;  // columns
constexpr int64_t kDeepestNarrow = 1024;

constexpr int64_t kPeakLanes = 16;  // as many as the widest vectors have

// How B [depth, columns] of a product is packed: panels of so many columns, one after another.
struct Packing {
  int64_t panel_columns;
  int64_t (*size)(int64_t depth, int64_t columns);                                           // in floats
  void (*pack)(const float* b, int64_t stride, int64_t depth, int64_t columns, float* out);  // stride: of rows of b
};

struct Kernels {
  const char* name;
  // count blocks of four words from counter.block on.
  void (*words)(const Counter& counter, int64_t count, uint32_t* out);
  // Normals of columns [first_column, first_column + count) of the row that begins at counter.block.
  void (*normals)(const Counter& counter, int64_t first_column, int64_t count, float* out);
  void (*uniforms)(const Counter& counter, int64_t first_column, int64_t count, float* out);  // likewise, in (0, 1]
  void (*map_row)(const MapRow& row, const float* w, const float* scales, int64_t count, float* out);
  void (*store_row)(const StoreRow& row, const float* w, const float* scales, int64_t first_column, int64_t count,
                    float* out);
  // From targets to programmed conductances; out may be targets.
  void (*program_row)(const ProgramRow& row, const float* targets, int64_t first_column, int64_t count, float* out);
  // theta: sigma N + sigma_cycle N' of the row's streams.
  void (*theta_row)(const ProgramRow& row, int64_t first_column, int64_t count, float* out);
  void (*drift_row)(const DriftRow& row, const float* targets, int64_t first_column, int64_t count, float* g);
  void (*stick_row)(const StuckRow& row, int64_t first_column, int64_t count, float* g);
  // NaN if there is one.
  float (*largest_magnitude)(const float* x, int64_t count);
  // magnitudes[i] = max(magnitudes[i], |x[i]|)
  void (*update_magnitudes)(const float* x, int64_t count, float* magnitudes);
  float (*sum_of_squares)(const float* x, int64_t count);
  void (*absolute)(const float* x, int64_t count, float* out);
  void (*square)(const float* x, int64_t count, float* out);
  // lowest[i] = min(lowest[i], x[i]), highest[i] likewise
  void (*widen_ranges)(const float* x, int64_t count, float* lowest, float* highest);
  // Codes of weights: out[i] = clip(rint(w[i] / scales[i]) + zeros[i], low, high)
  void (*make_codes)(float low, float high, const float* w, const float* scales, const float* zeros, int64_t count,
                     float* out);
  // What codes stand for: out[i] = (codes[i] - zeros[i]) * scales[i]; out may be codes.
  void (*read_codes)(const float* codes, const float* scales, const float* zeros, int64_t count, float* out);
  void (*quantize_input)(const InputRow& row, const float* x, int64_t count, float* out);
  // out[i] = sqrt(base + c2 * v[i]) * strength
  void (*noise_std)(const float* v, float c2, float base, float strength, int64_t count, float* out);
  // y [count, columns]: each row += its standard deviation times the normals of columns from first_column on. peaks may
  // be null; else kPeakLanes floats for each row, of which the first becomes its largest magnitude.
  void (*disturb_rows)(const Counter& counter, int64_t first_column, const NoiseRow* rows, int64_t count,
                       int64_t columns, float* y, float* peaks);
  // C [rows, columns] = A [rows, depth] B, B in float_packing. peaks may be null; else kPeakLanes floats for each row,
  // of which the first becomes the largest magnitude of the row of C.
  const Packing* float_packing;
  void (*multiply_packed)(const float* a, int64_t a_stride, int64_t rows, const float* packed, int64_t depth,
                          int64_t columns, float* c, int64_t c_stride, float* peaks);
  // The same product where A holds codes plus 128 of even steps up to 256, each row a multiple of 4 bytes long, and
  // steps what one code of each row is worth. Null where the instruction set has no fast product of bytes.
  const Packing* fixed_packing;
  int64_t deepest_fixed;  // rows of B whose sums do not overflow
  void (*multiply_codes)(const uint8_t* a, int64_t a_stride, int64_t rows, const float* packed, int64_t depth,
                         int64_t columns, const float* steps, float* c, int64_t c_stride, float* peaks);
  // What quantize_input makes, as codes; rest is as long as codes and written only where the result says so.
  EncodedRow (*encode_input)(const InputRow& row, const float* x, int64_t count, uint8_t* codes, uint8_t* rest);
  // Variances of read noise, to 8 bits: C [rows, columns] = A B, B of what noise is proportional to, as floats that are
  // whole steps, and A of the squares of inputs likewise; a row of `wide` squares meets finer steps.
  const Packing* rounded_packing;
  bool (*round_squares)(const float* x, int64_t count, float* out);  // whether they are wide
  void (*multiply_rounded)(const float* a, int64_t rows, const float* packed, int64_t depth, int64_t columns, bool wide,
                           float* c);
  // The same in bytes, where the instruction set has a product of them, else null; up to deepest_fixed rows.
  const Packing* variance_packing;
  // Of x, or of x_codes that encode_input has made. Rows are whole multiples of 4 bytes; low only if the result is
  // wide.
  EncodedSquares (*encode_squares)(const float* x, const uint8_t* x_codes, int64_t count, uint8_t* codes, uint8_t* low);
  void (*multiply_variances)(const uint8_t* a, int64_t a_stride, int64_t rows, const float* packed, int64_t depth,
                             int64_t columns, const float* steps, bool wide, bool add_to, float* c);
  // y [columns, count] (rows y_stride apart) = b [columns, depth] x [depth, count], as read. offsets: of the rows of x.
  // normals: [count, kMostNarrow], read if there is noise. What is not finite gives NaN.
  void (*read_narrow)(const NarrowRead& read, const float* x, const int64_t* offsets, int64_t depth, int64_t count,
                      const float* b, int64_t columns, const float* normals, float* y, int64_t y_stride);
  // Converts p (with gain and offset, in place) and adds it to, or writes it into, y. Returns whether the row
  // saturated.
  bool (*read_row)(const ReadRow& row, float* p, int64_t count, float* y);
};

// The table in use.
const Kernels& kernels();
inline bool all_finite(const float* x, int64_t count) { return std::isfinite(kernels().largest_magnitude(x, count)); }
// Forces a table by name ("baseline", "avx2", "avx512", "avx512_vnni", or "best" of them); false if it is unknown or
// this processor cannot run it.
bool use_kernels(const char* name);

}  // namespace emu
