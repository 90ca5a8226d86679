#include "periphery.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>

#include "stored_values.h"

namespace emu {

namespace {

// Buffers not in use, largest last. A handful serve any number of sites, because they run one after another.
struct Pool {
  std::mutex mutex;
  std::vector<std::vector<float>> free;
};

Pool& pool() {
  static Pool instance;
  return instance;
}

constexpr float kNotANumber = std::numeric_limits<float>::quiet_NaN();
constexpr size_t kMostFreeBuffers = 16;
// What one task works on shall stay in a second-level cache while tile after tile passes by.
constexpr int64_t kFloatsPerTask = 80 * 1024;
constexpr int64_t kFloatsNear = 4096;  // half of a first-level cache
constexpr int64_t kMostRowsPerTask = 48;
constexpr int64_t kMostRowsOfProduct = 256;       // where nothing is read between
constexpr int64_t kFloatsOfPatches = 512 * 1024;  // of one task of a plain product
constexpr int64_t kLeastTasks = 8;
constexpr int64_t kMostTasks = 256;
constexpr int64_t kRowsAtOnce = 24;  // whole steps of the fastest products, which take 12 and 8

}  // namespace

Scratch::Scratch(int64_t floats) {
  const auto size = static_cast<size_t>(floats);
  if (size == 0) return;
  {
    const std::lock_guard<std::mutex> lock(pool().mutex);
    auto& free = pool().free;
    const auto fits = std::find_if(free.begin(), free.end(), [&](const auto& buffer) { return buffer.size() >= size; });
    if (fits != free.end()) {
      buffer_ = std::move(*fits);
      free.erase(fits);
    } else if (!free.empty()) {
      free.pop_back();  // replaced by the larger one made below
    }
  }
  if (buffer_.size() < size) buffer_ = std::vector<float>(size);
}

Scratch::~Scratch() {
  if (buffer_.empty()) return;
  const std::lock_guard<std::mutex> lock(pool().mutex);
  auto& free = pool().free;
  const auto place =
      std::find_if(free.begin(), free.end(), [&](const auto& buffer) { return buffer.size() >= buffer_.size(); });
  free.insert(place, std::move(buffer_));
  if (free.size() > kMostFreeBuffers) free.erase(free.begin());
}

namespace {

// Rows of one matrix of Y that one task reads.
struct Block {
  int64_t matrix = 0;
  int64_t first = 0;  // row of Y
  int64_t rows = 0;
};

// Rows in as many blocks as keep several threads busy, none larger than what fits.
int64_t rows_per_block(int64_t rows, int64_t matrices, int64_t floats_per_row) {
  int64_t step = std::min(kMostRowsPerTask, kFloatsPerTask / std::max<int64_t>(1, floats_per_row));
  step = std::min(step, (rows * matrices + kLeastTasks - 1) / kLeastTasks);
  step = std::max<int64_t>(1, (step + kRowsAtOnce - 1) / kRowsAtOnce) * kRowsAtOnce;
  const int64_t blocks = (rows + step - 1) / step;  // of equal size, but for whole steps of the product
  const int64_t even = (rows + blocks - 1) / blocks;
  return (even + kRowsAtOnce - 1) / kRowsAtOnce * kRowsAtOnce;
}

// Rows of one matrix of a convolution of few columns, side by side as they lie in the images.
struct NarrowRows {
  int64_t matrix;
  int64_t first;
  int64_t count;
  const float* x;  // [depth, count], row k from offsets[k] on
  const int64_t* offsets;
  float* normals;  // room for [count, kMostNarrow]
  float* y;        // [columns, count], rows as far apart as the product has rows
};

void for_narrow(const Context& context, const Product& product, const std::function<void(const NarrowRows&)>& body) {
  const Patches& patches = *product.patches;
  const bool lines = patches.has_lines();
  const int64_t at_most = kFloatsNear / std::max<int64_t>(1, product.depth) / 32 * 32;
  const int64_t step = lines ? patches.line_length() : std::min(product.rows, std::max<int64_t>(64, at_most));
  // Lines of one image after each other, which is padded once.
  const int64_t steps = (product.rows + step - 1) / step;
  const int64_t steps_of_part = lines ? steps : 1;
  const int64_t parts = product.matrices * (steps / steps_of_part);
  const int64_t at_once = std::max<int64_t>(1, parts / kMostTasks);
  std::vector<int64_t> offsets = lines ? patches.column_offsets() : std::vector<int64_t>();
  context.parallel_for((parts + at_once - 1) / at_once, [&](int64_t task) {
    Scratch x(lines ? patches.padded_size() : step * product.depth);
    Scratch normals(step * kMostNarrow);
    std::vector<int64_t> own(lines ? 0 : static_cast<size_t>(product.depth));
    for (int64_t part = task * at_once; part < std::min(parts, (task + 1) * at_once); ++part) {
      const int64_t begin = part * steps_of_part;
      const int64_t matrix = begin / steps;
      const float* image = product.a + matrix * patches.image_size();
      if (lines) patches.pad(image, x.data());
      for (int64_t i = begin % steps; i < begin % steps + steps_of_part; ++i) {
        NarrowRows rows{matrix,
                        i * step,
                        std::min(step, product.rows - i * step),
                        x.data(),
                        offsets.data(),
                        normals.data(),
                        product.y + matrix * product.columns * product.rows + i * step};
        if (lines) {
          rows.x += patches.line_start(i);
        } else {
          patches.cut_columns(image, rows.first, rows.count, x.data(), rows.count);
          for (size_t k = 0; k < own.size(); ++k) own[k] = static_cast<int64_t>(k) * rows.count;
          rows.offsets = own.data();
        }
        body(rows);
      }
    }
  });
}

// How one product is read: what is the same for all its rows.
class Reader {
 public:
  explicit Reader(const CrossbarProduct& product)
      : product_(product),
        structure_(*product.structure),
        device_(product.controls->device),
        strength_(product.controls->strength),
        weight_slices_(product.decoding.factors.size()),
        input_readings_(static_cast<size_t>(structure_.input_readings(device_))),
        cuts_inputs_(structure_.dac_slice_bits > 0 && structure_.dac_slice_sum == DacSliceSum::kDigital) {
    input_.steps = structure_.dac_steps(device_);
    input_.bound = device_.dac_bound;
    input_.offset_binary = structure_.dac_code == DacCode::kOffsetBinary;
    input_.clip = structure_.dac != InputRange::kNone;
    if (structure_.input_noise()) input_noise_ = strength_ * device_.read_input_noise;
    output_noise_squared_ = structure_.output_noise() ? device_.read_output_noise * device_.read_output_noise : 0.0f;
    if (structure_.read_noise != ReadNoise::kNone) weight_noise_ = device_.read_weight_noise;
    if (structure_.read_noise == ReadNoise::kIndependent)
      devices_ = static_cast<float>(std::max(1, structure_.devices()));
    noisy_ = strength_ * (weight_noise_ + output_noise_squared_) > 0;
    needs_variances_ = noisy_ && needs_noise_weights(structure_) && weight_noise_ > 0;
    ir_drop_ = structure_.ir_drop == IrDrop::kFormula && device_.read_ir_drop > 0;
    pattern_.range = structure_.adc == Range::kNone     ? ReadRow::Range::kNone
                     : structure_.adc == Range::kAbsmax ? ReadRow::Range::kAbsmax
                                                        : ReadRow::Range::kGiven;
    pattern_.code = structure_.adc_code;
    pattern_.steps = structure_.adc_steps(device_);
    rounds_outputs_ = structure_.adc_rounding == AdcRounding::kStochastic && pattern_.steps > 0;
    find_sample_keys();
    bends_ = device_.adc_nonlinearity > 0 || device_.adc_asymmetry != 0;
    spreads_outputs_ = device_.read_output_noise_spread > 0 && output_noise_squared_ > 0;
    sum_ = {device_.dac_assumed_weight, device_.dac_sum_resolution};
    if (structure_.adc == Range::kGranular) granular_step_ = granular_step();
    for (const Span& tile : product.row_tiles) deepest_ = std::max(deepest_, tile.size());
    for (const Span& group : product.column_groups) widest_ = std::max(widest_, group.size());
    // Noise finds the largest sums by itself, and what else happens to products changes them.
    needs_peaks_ = !noisy_ && !ir_drop_ && !bends_ && !structure_.adc_errors() &&
                   (structure_.bound_management != BoundManagement::kNone || pattern_.range == ReadRow::Range::kAbsmax);
    codes_ = product.packing == kernels().fixed_packing;
    byte_variances_ = needs_variances_ && product.noise_packing == kernels().variance_packing;
    measure_columns();
  }

  void run(const Context& context) const {
    if (product_.packing == &column_packing()) {
      run_narrow(context);
      return;
    }
    const int64_t matrices = product_.matrices;
    const int64_t step = rows_per_block(product_.rows, matrices, deepest_ + widest_);
    const int64_t of_matrix = (product_.rows + step - 1) / step;
    context.parallel_for(matrices * of_matrix, [&](int64_t task) {
      const int64_t begin = task % of_matrix * step;
      const int64_t matrix = task / of_matrix;
      read_block({matrix, matrix * product_.rows + begin, std::min(step, product_.rows - begin)});
    });
  }

 private:
  // Codes of inputs, one row after another, each as long as the product wants it.
  struct Codes {
    explicit Codes(int64_t bytes) : memory(bytes / 4) {}
    static int64_t row_bytes(int64_t depth) { return (depth + 3) / 4 * 4; }
    uint8_t* row(int64_t r, int64_t depth) { return reinterpret_cast<uint8_t*>(memory.data()) + r * row_bytes(depth); }
    Scratch memory;
  };

  // Of the rows of one block, or of those that are read again.
  struct Work {
    Work(const Reader& reader, int64_t rows)
        : inputs(reader.codes_ ? 0 : rows * reader.deepest_),
          codes(reader.codes_ ? rows * Codes::row_bytes(reader.deepest_) : 0),
          rests(reader.codes_ && reader.input_.steps > 254 ? rows * Codes::row_bytes(reader.deepest_) : 0),
          encoded(reader.codes_ ? static_cast<size_t>(rows) : 0),
          code_steps(encoded.size()),
          sliced(reader.cuts_inputs_ ? rows * reader.deepest_ : 0),
          derived(reader.ir_drop_ ? rows * reader.deepest_ : 0),
          squares(reader.needs_variances_ && !reader.byte_variances_ ? rows * reader.deepest_ : 0),
          square_codes(reader.byte_variances_ ? rows * Codes::row_bytes(reader.deepest_) : 0),
          low_codes(reader.byte_variances_ ? rows * Codes::row_bytes(reader.deepest_) : 0),
          square_steps(reader.byte_variances_ ? static_cast<size_t>(rows) : 0),
          low_steps(square_steps.size()),
          slots(reader.needs_variances_ ? static_cast<size_t>(rows) : 0),
          products(rows * reader.widest_),
          variances(reader.needs_variances_ || reader.spreads_outputs_ ? rows * reader.widest_ : 0),
          currents(reader.ir_drop_ ? rows * reader.widest_ : 0),
          ramped(reader.ir_drop_ ? rows * reader.widest_ : 0),
          peaks(reader.needs_peaks_ || reader.noisy_ ? rows * kPeakLanes : 0),
          noise(reader.noisy_ ? static_cast<size_t>(rows) : 0),
          norms(static_cast<size_t>(rows), 0.0f),
          places(static_cast<size_t>(rows)) {}

    Scratch inputs;
    Codes codes;  // instead of inputs
    Codes rests;
    std::vector<EncodedRow> encoded;
    std::vector<float> code_steps;  // of each row
    Scratch sliced;
    Scratch derived;
    Scratch squares;  // of the inputs, or
    Codes square_codes;
    Codes low_codes;
    std::vector<float> square_steps;
    std::vector<float> low_steps;
    std::vector<int64_t> slots;  // of the squares and variances of each row: first all that are not wide
    int64_t narrow = 0;          // how many these are
    Scratch products;
    Scratch variances;
    Scratch currents;
    Scratch ramped;
    Scratch peaks;  // of the products
    std::vector<NoiseRow> noise;
    std::vector<float> norms;  // squared; only for additive constant weight noise
    std::vector<SampleRow> places;
  };

  // Rows of Y, one after another, that are read with inputs divided by factors.
  struct Rows {
    const int64_t* y;
    const float* factors;  // alpha * b of each
    int64_t count;
    // Of the block: its first row of Y, what its rows meet in this tile (where they are cut out of images), and where
    // their results are added up.
    int64_t first;
    const float* patches;
    float* out;
  };

  static uint64_t blocks(int64_t columns) { return static_cast<uint64_t>((columns + 3) / 4); }

  int64_t b_matrix(int64_t y_row) const { return product_.b_matrix(y_row / product_.rows); }

  // What a tile meets of the inputs of a row of Y.
  const float* input(const Rows& rows, int64_t y_row, const Span& tile) const {
    if (rows.patches != nullptr) return rows.patches + (y_row - rows.first) * tile.size();
    const int64_t matrix = product_.a_matrix(y_row / product_.rows);
    return product_.a + (matrix * product_.rows + y_row % product_.rows) * product_.depth + tile.begin;
  }

  float* output(const Rows& rows, int64_t y_row) const { return rows.out + (y_row - rows.first) * product_.columns; }

  // Step 1: alpha, 0 where the tile contributes nothing, because its inputs are 0 or are not all finite. Inputs of
  // which one is not make the row a `lost` one.
  float input_scale(const float* x, int64_t count, const CalibratedRange& calibrated, char& lost) const {
    const float largest = kernels().largest_magnitude(x, count);
    if (!std::isfinite(largest)) {
      lost = 1;
      return 0.0f;
    }
    const float alpha = structure_.dac == InputRange::kMax         ? limited(*std::max_element(x, x + count))
                        : structure_.dac == InputRange::kAbsmaxSum ? range_of_sum(x, count, limited(largest), sum_)
                                                                   : range_of_input(largest, calibrated);
    if (alpha <= 0) return 0.0f;
    return std::isfinite(1.0f / alpha) ? alpha : 0.0f;
  }

  float limited(float largest) const { return device_.dac_limit > 0 ? std::min(largest, device_.dac_limit) : largest; }

  // What a sum of inputs may reach: its largest weight, and the resolution that inputs keep.
  struct Sum {
    float weight = 1;
    float resolution = 1;
  };

  // The range of inputs that keeps the larger sum of one sign, times a weight, within the ADC's bound.
  float range_of_sum(const float* x, int64_t count, float largest, const Sum& sum) const {
    double positive = 0;
    double negative = 0;
    for (int64_t k = 0; k < count; ++k) (x[k] > 0 ? positive : negative) += std::fabs(static_cast<double>(x[k]));
    double of_sum = std::max(positive, negative) * sum.weight / device_.adc_bound;
    if (input_.steps > 0) {
      const double step = 2.0 * device_.dac_bound / input_.steps;
      of_sum = std::min(of_sum, largest * (sum.resolution / step));
    }
    return static_cast<float>(std::max(static_cast<double>(largest), of_sum));
  }

  float range_of_input(float largest, const CalibratedRange& calibrated) const {
    switch (structure_.dac) {
      case InputRange::kAbsmax:
        return limited(largest);
      case InputRange::kFixed:
        return device_.dac_max;
      case InputRange::kCalibrated:
        return calibrated.input;
      default:
        return 1.0f;
    }
  }

  // Weight of what is converted by itself of an input.
  double input_weight(size_t j) const { return cuts_inputs_ ? weight_of_digit(j) : 1.0; }

  double weight_of_digit(size_t j) const {
    const double digit_steps = std::exp2(static_cast<double>(structure_.dac_slice_bits)) - 1;
    const double whole_steps = std::exp2(static_cast<double>(device_.dac_bits) - 1) - 1;
    return std::exp2(static_cast<double>(structure_.dac_slice_bits) * static_cast<double>(j)) * digit_steps /
           whole_steps;
  }

  // Smallest difference between two outputs: one step of a cell times one step of an input.
  double granular_step() const {
    double cell_steps = 0;
    if (structure_.slice_bits > 0) {
      cell_steps = std::exp2(static_cast<double>(structure_.slice_bits)) - 1;
    } else if (device_.mapping_cell_bits > 0) {
      cell_steps = std::exp2(static_cast<double>(device_.mapping_cell_bits)) - 1;
    } else if (structure_.weight_bits > 0) {
      cell_steps = std::exp2(static_cast<double>(structure_.weight_bits - 1)) - 1;
    }
    const double input_steps = cuts_inputs_ ? std::exp2(static_cast<double>(structure_.dac_slice_bits)) - 1
                                            : structure_.dac_steps(device_) / 2;
    if (cell_steps == 0 || input_steps == 0) {
      throw Error("node '" + structure_.node +
                  "', attribute 'adc' is 'granular'; this needs weights and inputs of limited resolution");
    }
    // One weight of 1 is this much in units of g_max; the slices of a weight have steps of their own.
    const bool conductances =
        structure_.dynamic() ? product_.decoding.factors[0] != 1.0f : structure_.encoding != Encoding::kWeight;
    return (conductances ? 1.0 - device_.floor() : 1.0) / (cell_steps * input_steps);
  }

  // Step 2 for one row of A, which meets the inputs of a row of Y; factor is alpha * b.
  void convert_input(const float* x, const SampleRow& place, const Span& tile, float factor, float* out) const {
    if (factor == 0) {  // nothing is applied, whatever x holds
      std::fill(out, out + tile.size(), 0.0f);
      return;
    }
    InputRow row = input_;
    row.inverse = 1.0f / factor;
    if (structure_.dac_rounding == DacRounding::kStochastic && row.steps > 0) {
      const int64_t first = product_.first_row + tile.begin;
      kernels().uniforms(run_time(place, rounding_of(kInputNoise)), first, tile.size(), out);
      const auto step = static_cast<float>(2.0 * row.bound / row.steps);
      for (int64_t k = 0; k < tile.size(); ++k) out[k] = x[k] * row.inverse + (out[k] - 0.5f) * step;
      row.inverse = 1.0f;
      x = out;
    }
    kernels().quantize_input(row, x, tile.size(), out);
    if (input_noise_ > 0) {
      const NoiseRow noise{0, place.position, input_noise_, nullptr};
      kernels().disturb_rows(run_time(place, kInputNoise), product_.first_row + tile.begin, &noise, 1, tile.size(), out,
                             nullptr);
    }
    if (device_.dac_asymmetry != 0) {
      const float kept = 1.0f - device_.dac_asymmetry;
      for (int64_t k = 0; k < tile.size(); ++k) out[k] = out[k] < 0 ? out[k] * kept : out[k];
    }
  }

  void read_block(const Block& block) const {
    std::vector<int64_t> y_rows(static_cast<size_t>(block.rows));
    std::iota(y_rows.begin(), y_rows.end(), block.first);
    std::vector<float> factors(y_rows.size());
    const Patches* patches = product_.patches;
    Scratch cut(patches != nullptr ? block.rows * deepest_ : 0);
    // A single column lies in an image as its rows do.
    const bool across = patches != nullptr && product_.columns > 1;
    Scratch gathered(across ? block.rows * product_.columns : 0);
    float* out = across ? gathered.data() : product_.y + block.first * product_.columns;
    const Rows rows{y_rows.data(), factors.data(), block.rows, block.first, patches ? cut.data() : nullptr, out};
    Work work(*this, block.rows);
    find_places(rows, work);
    std::vector<char> lost(y_rows.size(), 0);
    for (size_t t = 0; t < product_.row_tiles.size(); ++t) {
      const Span tile = product_.row_tiles[t];
      if (patches != nullptr) {
        patches->cut(product_.a + block.matrix * patches->image_size(), block.first - block.matrix * product_.rows,
                     block.rows, tile, cut.data());
      }
      const CalibratedRange& calibrated = range_of(0, t, b_matrix(block.first));
      for (int64_t r = 0; r < block.rows; ++r) {
        const auto i = static_cast<size_t>(r);
        factors[i] = input_scale(input(rows, y_rows[i], tile), tile.size(), calibrated, lost[i]);
      }
      convert_inputs(rows, tile, work);
      for (size_t j = 0; j < input_readings_; ++j) {
        const float* x = work.inputs.data();
        if (cuts_inputs_) {
          cut_inputs(j, x, block.rows * tile.size(), work.sliced.data());
          x = work.sliced.data();
        }
        measure_squares(x, rows.count, tile.size(), work);
        for (size_t i = 0; i < weight_slices_; ++i) {
          for (size_t g = 0; g < product_.column_groups.size(); ++g) read_group(i, j, t, g, rows, x, work);
        }
        if (product_.decoding.offset != 0) take_offset(j, t, rows, x, tile.size());
      }
    }
    for (int64_t r = 0; r < block.rows; ++r) {
      float* y = output(rows, block.first + r);
      if (lost[static_cast<size_t>(r)] != 0) std::fill(y, y + product_.columns, kNotANumber);
    }
    if (across) {
      float* image = product_.y + block.matrix * product_.columns * product_.rows;
      transpose(out, product_.columns, block.rows, product_.columns, image + block.first - block.matrix * product_.rows,
                product_.rows);
    }
  }

  void run_narrow(const Context& context) const {
    for_narrow(context, product_, [&](const NarrowRows& rows) { read_narrow(rows); });
  }

  void read_narrow(const NarrowRows& rows) const {
    const int64_t b = product_.b_matrix(rows.matrix);
    const int64_t row = rows.matrix * product_.rows + rows.first;
    NarrowRead read;
    read.input = input_;
    read.alpha = structure_.dac == InputRange::kAbsmax ? 0.0f : range_of_input(0.0f, range_of(0, 0, b));
    read.limit = structure_.dac == InputRange::kAbsmax ? device_.dac_limit : 0.0f;
    read.noisy = noisy_;
    read.weight_variance = weight_noise_ * weight_noise_ * devices_;
    read.output_variance = output_noise_squared_;
    read.strength = strength_;
    read.output = pattern_of(0, 0, 0, b, false);
    read.output.factor = product_.decoding.factors[0] * device_.adc_scale;
    read.output.scales = scales(row, 0);
    if (noisy_) {  // one block each, of rows that follow each other
      static_assert(kMostNarrow == 4, "as many as a block has");
      const SampleRow place = product_.samples->locate(row);
      Counter counter = run_time(place, kRead);
      counter.block = place.position;
      counter.block_word = BlockWord::kC1;
      kernels().normals(counter, 0, rows.count * kMostNarrow, rows.normals);
    }
    kernels().read_narrow(read, rows.x, rows.offsets, product_.depth, rows.count,
                          product_.tile(0, 0, 0) + b * product_.depth * product_.columns, product_.columns,
                          rows.normals, rows.y, product_.rows);
  }

  void find_places(const Rows& rows, Work& work) const {
    for (int64_t r = 0; r < rows.count; ++r) {
      work.places[static_cast<size_t>(r)] = locate(rows.y[r]);
    }
  }

  // What one code is worth.
  float code_step() const { return static_cast<float>(2.0 * input_.bound / input_.steps); }

  void encode_inputs(const Rows& rows, const Span& tile, Work& work) const {
    const bool may_have_rest = input_.steps > 254;
    for (int64_t r = 0; r < rows.count; ++r) {
      EncodedRow& encoded = work.encoded[static_cast<size_t>(r)];
      uint8_t* codes = work.codes.row(r, tile.size());
      if (rows.factors[r] == 0) {  // nothing is applied, whatever the row holds
        std::fill(codes, codes + Codes::row_bytes(tile.size()), uint8_t{0});
        encoded = {};
        work.code_steps[static_cast<size_t>(r)] = 0;
        continue;
      }
      InputRow row = input_;
      row.inverse = 1.0f / rows.factors[r];
      encoded = kernels().encode_input(row, input(rows, rows.y[r], tile), tile.size(), codes,
                                       may_have_rest ? work.rests.row(r, tile.size()) : nullptr);
      work.code_steps[static_cast<size_t>(r)] = encoded.sign * code_step();
    }
  }

  void convert_inputs(const Rows& rows, const Span& tile, Work& work) const {
    if (codes_) {
      encode_inputs(rows, tile, work);
      return;
    }
    for (int64_t r = 0; r < rows.count; ++r) {
      convert_input(input(rows, rows.y[r], tile), work.places[static_cast<size_t>(r)], tile, rows.factors[r],
                    work.inputs.data() + r * tile.size());
    }
  }

  // What the variance of read noise takes of the inputs of one slice.
  void measure_squares(const float* x, int64_t rows, int64_t depth, Work& work) const {
    if (needs_variances_) {
      work.narrow = 0;
      for (int64_t r = 0, last = rows; r < rows; ++r) {
        const int64_t slot = work.narrow;
        const bool wide = byte_variances_ ? encode_squares(r, x + r * depth, depth, slot, last - 1, work)
                                          : round_squares(x + r * depth, depth, slot, last - 1, work);
        work.slots[static_cast<size_t>(r)] = wide ? --last : work.narrow++;
      }
    } else if (noisy_ && structure_.read_noise != ReadNoise::kNone) {
      for (int64_t r = 0; r < rows; ++r) {
        work.norms[static_cast<size_t>(r)] = norm(x + r * depth, depth, work.encoded, static_cast<size_t>(r));
      }
    }
  }

  // The sum of the squares of one row of inputs.
  float norm(const float* x, int64_t depth, const std::vector<EncodedRow>& encoded, size_t row) const {
    if (codes_) return encoded[row].squares * code_step() * code_step();
    if (structure_.dac_slice_sum == DacSliceSum::kDigital) return kernels().sum_of_squares(x, depth);
    Scratch squares(depth);
    square_inputs(x, depth, squares.data());
    return std::accumulate(squares.data(), squares.data() + depth, 0.0f);
  }

  // What the variance of read noise grows with: the squares of the inputs, or of the slices that add up to them.
  void square_inputs(const float* x, int64_t count, float* out) const {
    if (structure_.dac_slice_sum == DacSliceSum::kDigital) {
      kernels().square(x, count, out);
      return;
    }
    Scratch digit(count);
    std::fill(out, out + count, 0.0f);
    for (size_t j = 0; j < static_cast<size_t>(structure_.input_slices(device_)); ++j) {
      cut_inputs(j, x, count, digit.data());
      const auto h = static_cast<float>(weight_of_digit(j));
      for (int64_t i = 0; i < count; ++i) out[i] += h * digit.data()[i] * (h * digit.data()[i]);
    }
  }

  // Into a slot, or into another one if they are wide.
  bool encode_squares(int64_t r, const float* x, int64_t depth, int64_t slot, int64_t other, Work& work) const {
    uint8_t* codes = work.square_codes.row(slot, depth);
    EncodedSquares encoded = kernels().encode_squares(codes_ ? nullptr : x, codes_ ? work.codes.row(r, depth) : nullptr,
                                                      depth, codes, work.low_codes.row(other, depth));
    if (codes_) encoded.step *= code_step() * code_step();
    work.square_steps[static_cast<size_t>(encoded.wide ? other : slot)] =
        encoded.wide ? 256.0f * encoded.step : encoded.step;
    if (!encoded.wide) return false;
    work.low_steps[static_cast<size_t>(other)] = encoded.step;
    if (other != slot) std::copy(codes, codes + Codes::row_bytes(depth), work.square_codes.row(other, depth));
    return true;
  }

  bool round_squares(const float* x, int64_t depth, int64_t slot, int64_t other, Work& work) const {
    float* squares = work.squares.data() + slot * depth;
    if (product_.noise_packing != kernels().rounded_packing) {
      square_inputs(x, depth, squares);
      return false;
    }
    if (!kernels().round_squares(x, depth, squares)) return false;
    if (other != slot) std::copy(squares, squares + depth, work.squares.data() + other * depth);
    return true;
  }

  // Steps 3 and 4: what the columns of one group carry.
  void multiply(size_t i, size_t t, size_t g, const Rows& rows, const float* x, Work& work) const {
    const int64_t depth = product_.row_tiles[t].size();
    const int64_t width = product_.column_groups[g].size();
    const int64_t matrix = b_matrix(rows.y[0]);
    if (codes_) {
      multiply_codes(product_.tile(i, t, g) + matrix * product_.packing->size(depth, width), rows.count, depth, width,
                     work);
      return;
    }
    const auto times = [&](const float* inputs, const float* packed, Scratch& y) {
      const float* own = packed + matrix * product_.packing->size(depth, width);
      kernels().multiply_packed(inputs, depth, rows.count, own, depth, width, y.data(), width,
                                &y == &work.products && needs_peaks_ ? work.peaks.data() : nullptr);
    };
    times(x, product_.tile(i, t, g), work.products);
    if (ir_drop_) {
      kernels().absolute(x, rows.count * depth, work.derived.data());
      times(work.derived.data(), product_.magnitude_tile(i, t, g), work.currents);
      ramp_inputs(x, rows.count, t, work.derived.data());
      times(work.derived.data(), product_.tile(i, t, g), work.ramped);
      drop(t, rows.count * width, work.currents.data(), work.ramped.data(), work.products.data());
    }
  }

  void multiply_variances(size_t i, size_t t, size_t g, const Rows& rows, Work& work) const {
    const int64_t depth = product_.row_tiles[t].size();
    const int64_t width = product_.column_groups[g].size();
    const float* packed =
        product_.noise_tile(i, t, g) + b_matrix(rows.y[0]) * product_.noise_packing->size(depth, width);
    float* variances = work.variances.data();
    if (product_.noise_packing == kernels().float_packing) {
      kernels().multiply_packed(work.squares.data(), depth, rows.count, packed, depth, width, variances, width,
                                nullptr);
      return;
    }
    const auto times = [&](int64_t first, int64_t count, bool wide) {
      float* out = variances + first * width;
      if (count == 0) return;
      if (!byte_variances_) {
        kernels().multiply_rounded(work.squares.data() + first * depth, count, packed, depth, width, wide, out);
        return;
      }
      const int64_t stride = Codes::row_bytes(depth);
      const auto digit = [&](Codes& codes, const std::vector<float>& steps, bool add_to) {
        kernels().multiply_variances(codes.row(first, depth), stride, count, packed, depth, width, steps.data() + first,
                                     wide, add_to, out);
      };
      digit(work.square_codes, work.square_steps, false);
      if (wide) digit(work.low_codes, work.low_steps, true);
    };
    times(0, work.narrow, false);
    times(work.narrow, rows.count - work.narrow, true);
  }

  void multiply_codes(const float* packed, int64_t rows, int64_t depth, int64_t width, Work& work) const {
    float* products = work.products.data();
    float* peaks = needs_peaks_ ? work.peaks.data() : nullptr;
    kernels().multiply_codes(work.codes.row(0, depth), Codes::row_bytes(depth), rows, packed, depth, width,
                             work.code_steps.data(), products, width, peaks);
    for (int64_t r = 0; r < rows; ++r) {
      const auto i = static_cast<size_t>(r);
      if (!work.encoded[i].has_rest) continue;
      Scratch rest(width);
      kernels().multiply_codes(work.rests.row(r, depth), Codes::row_bytes(depth), 1, packed, depth, width,
                               &work.code_steps[i], rest.data(), width, nullptr);
      for (int64_t n = 0; n < width; ++n) products[r * width + n] += rest.data()[n];
      if (peaks != nullptr) peaks[r * kPeakLanes] = kernels().largest_magnitude(products + r * width, width);
    }
  }

  void read_group(size_t i, size_t j, size_t t, size_t g, const Rows& rows, const float* x, Work& work) const {
    std::vector<int64_t> again = read_rows(i, j, t, g, rows, x, pass_of(i, j), may_repeat(1.0), work);
    // Step 7: saturated rows are read again with inputs divided by b.
    double b = 1;
    const bool worst_case = structure_.bound_management == BoundManagement::kWorstCase;
    for (uint32_t attempt = 1; !again.empty(); ++attempt) {
      if (!worst_case || attempt > 1) b *= 2;
      std::vector<float> factors;
      for (const int64_t y_row : again) {
        const float alpha = worst_case ? worst_case_range(input(rows, y_row, product_.row_tiles[t]), t)
                                       : rows.factors[y_row - rows.y[0]];
        factors.push_back(static_cast<float>(alpha * b));
      }
      const Rows saturated{again.data(), factors.data(), static_cast<int64_t>(again.size()),
                           rows.first,   rows.patches,   rows.out};
      Work repeated(*this, saturated.count);
      find_places(saturated, repeated);
      const Span tile = product_.row_tiles[t];
      convert_inputs(saturated, tile, repeated);
      measure_squares(repeated.inputs.data(), saturated.count, tile.size(), repeated);
      again = read_rows(0, 0, t, g, saturated, repeated.inputs.data(), attempt, may_repeat(b), repeated);
    }
  }

  float worst_case_range(const float* x, size_t t) const {
    const int64_t count = product_.row_tiles[t].size();
    const Sum sum{device_.adc_assumed_weight, device_.adc_max_bound_resolution};
    const float alpha = range_of_sum(x, count, limited(kernels().largest_magnitude(x, count)), sum);
    return alpha > 0 ? alpha : 1.0f;
  }

  // What readings of all rows of one group have in common, steps 5, 6 and 8.
  ReadRow pattern_of(size_t i, size_t t, size_t g, int64_t matrix, bool may_repeat) const {
    const Span group = product_.column_groups[g];
    ReadRow row = pattern_;
    if (!gains_.empty()) {
      row.gain = gains_.data() + converter_row(i, t, matrix) + group.begin;
      row.offset = offsets_.data() + converter_row(i, t, matrix) + group.begin;
    }
    set_range(i, t, matrix, row);
    row.stop_if_saturated = may_repeat;
    return row;
  }

  // Returns the rows that saturated and must be read again.
  std::vector<int64_t> read_rows(size_t i, size_t j, size_t t, size_t g, const Rows& rows, const float* x,
                                 uint32_t pass, bool may_repeat, Work& work) const {
    const Span group = product_.column_groups[g];
    multiply(i, t, g, rows, x, work);
    if (needs_variances_) multiply_variances(i, t, g, rows, work);
    ReadRow row = pattern_of(i, t, g, b_matrix(rows.y[0]), may_repeat);
    const float decoding = product_.decoding.factors[i];
    const float of_slice = static_cast<float>(input_weight(j)) * device_.adc_scale;
    const bool first = t == 0 && i == 0 && j == 0;
    row.scales = scales(rows.y[0], t) + group.begin;
    row.accumulate = !first;
    Scratch rounding(rounds_outputs_ ? group.size() : 0);
    if (rounds_outputs_) row.uniforms = rounding.data();
    std::vector<int64_t> saturated;
    // What is disturbed shall still be near when it is converted.
    const int64_t at_once = std::max<int64_t>(1, kFloatsNear / std::max<int64_t>(1, group.size()));
    for (int64_t begin = 0; begin < rows.count; begin += at_once) {
      const int64_t end = std::min(begin + at_once, rows.count);
      const uint32_t stream = tile_stream(stream_of(i), t, pass);
      const int64_t columns = converter_row(i, t, b_matrix(rows.y[0])) + group.begin;
      if (noisy_) disturb(stream, group, columns, true, !bends_, begin, end, work);
      if (bends_) {
        bend(group, columns, begin, end, work);
        if (output_noise_squared_ > 0) {
          disturb(stream + kOutputNoise - kRead, group, columns, false, true, begin, end, work);
        }
      }
      for (int64_t r = begin; r < end; ++r) {
        float* y = output(rows, rows.y[r]) + group.begin;
        if (rows.factors[r] == 0) {  // nothing is applied, so nothing is read
          if (first) std::fill(y, y + group.size(), 0.0f);
          continue;
        }
        if ((needs_peaks_ || noisy_) && !bends_) row.peak = work.peaks.data()[r * kPeakLanes];
        row.factor = rows.factors[r] * decoding * of_slice;
        if (row.uniforms != nullptr) {
          kernels().uniforms(
              run_time(work.places[static_cast<size_t>(r)], tile_stream(rounding_of(stream_of(i)), t, pass)),
              product_.first_column + group.begin, group.size(), rounding.data());
        }
        if (kernels().read_row(row, work.products.data() + r * group.size(), group.size(), y)) {
          saturated.push_back(rows.y[r]);
        }
      }
    }
    return saturated;
  }

  // What outputs that are not linear make of rows [begin, end); columns: the first of the group among converters.
  void bend(const Span& group, int64_t columns, int64_t begin, int64_t end, Work& work) const {
    const float slope = 1 + device_.adc_nonlinearity * device_.adc_slope_calibration;
    const float kept = 1.0f - device_.adc_asymmetry;
    for (int64_t r = begin; r < end; ++r) {
      float* y = work.products.data() + r * group.size();
      for (int64_t n = 0; n < group.size(); ++n) {
        float v = y[n];
        if (!bending_.empty()) {
          v = slope * slope * v / (1 + bending_[static_cast<size_t>(columns + n)] * std::fabs(v));
        }
        y[n] = v < 0 ? v * kept : v;
      }
    }
  }

  // Step 5 for rows [begin, end) of what a group carries: noise of the weights, of outputs, or of both.
  void disturb(uint32_t stream, const Span& group, int64_t columns, bool of_weights, bool of_outputs, int64_t begin,
               int64_t end, Work& work) const {
    const float weight_variance = of_weights ? weight_noise_ * weight_noise_ : 0.0f;
    const float output_variance = of_outputs ? output_noise_squared_ : 0.0f;
    const bool each_column = of_outputs && !spreads_.empty();
    for (int64_t r = begin; r < end; ++r) {
      const SampleRow& place = work.places[static_cast<size_t>(r)];
      NoiseRow& row = work.noise[static_cast<size_t>(r)];
      row.position = place.position;
      const float norm = work.norms[static_cast<size_t>(r)];
      const int64_t slot = needs_variances_ ? work.slots[static_cast<size_t>(r)] : r;
      float* variances = work.variances.data() + slot * group.size();
      row.std_each = nullptr;
      if (each_column) {
        for (int64_t n = 0; n < group.size(); ++n) {
          const float own = spreads_[static_cast<size_t>(columns + n)];
          const float devices = !of_weights ? 0.0f : needs_variances_ ? std::max(variances[n], 0.0f) : devices_ * norm;
          variances[n] = strength_ * std::sqrt(weight_variance * devices + own * own);
        }
        row.std_each = variances;
      } else if (needs_variances_ && of_weights) {
        kernels().noise_std(variances, weight_variance, output_variance, strength_, group.size(), variances);
        row.std_each = variances;
      } else {
        row.std = strength_ * std::sqrt(weight_variance * devices_ * norm + output_variance);
      }
    }
    while (begin < end) {  // rows of one matrix at once
      const SampleRow& place = work.places[static_cast<size_t>(begin)];
      int64_t next = begin + 1;
      while (next < end && same_matrix(place, work.places[static_cast<size_t>(next)])) ++next;
      kernels().disturb_rows(run_time(place, stream), product_.first_column + group.begin, work.noise.data() + begin,
                             next - begin, group.size(), work.products.data() + begin * group.size(),
                             work.peaks.data() + begin * kPeakLanes);
      begin = next;
    }
  }

  static bool same_matrix(const SampleRow& one, const SampleRow& other) {
    return one.sample == other.sample && one.matrix == other.matrix;
  }

  SampleRow locate(int64_t y_row) const { return product_.samples->locate(product_.first_y_row + y_row); }

  void find_sample_keys() {
    const SampleMap& samples = *product_.samples;
    for (int64_t i = 0; i < samples.samples(); ++i) {
      keys_.push_back(sample_key(product_.controls->seed, product_.controls->read_seed,
                                 samples.first_sample() + static_cast<uint32_t>(i)));
    }
  }

  // The counter of run-time noise in a row, but for its position.
  Counter run_time(const SampleRow& place, uint32_t stream) const {
    const SampleKey& key = keys_[place.sample - product_.samples->first_sample()];
    Counter counter;
    counter.key0 = key.key0;
    counter.key1 = key.key1;
    counter.c1 = place.position;
    counter.c2 = static_cast<uint32_t>(structure_.site) + (place.matrix << 16);
    counter.c3 = stream;
    return counter;
  }

  // Number of a row tile in the arrays.
  int64_t tile_number(size_t t) const {
    const int64_t before = structure_.tile_rows == 0 ? 0 : product_.first_row / structure_.tile_rows;
    return before + static_cast<int64_t>(t);
  }
  uint32_t tile_stream(uint32_t stream, size_t t, uint32_t pass) const {
    return stream + (static_cast<uint32_t>(tile_number(t)) << 8) + (pass << 24);
  }
  int64_t tile_depth(size_t t) const {
    return product_.tile_rows > 0 ? product_.tile_rows : product_.row_tiles[t].size();
  }
  int64_t offset_in_tile(size_t t) const {
    return product_.tile_rows > 0 ? (product_.first_row + product_.row_tiles[t].begin) % product_.tile_rows : 0;
  }

  // Digit j of the magnitudes, with their signs.
  void cut_inputs(size_t j, const float* inputs, int64_t count, float* out) const {
    const auto whole_steps = static_cast<float>(std::exp2(static_cast<double>(device_.dac_bits) - 1) - 1);
    const auto digit_steps = static_cast<float>(std::exp2(static_cast<double>(structure_.dac_slice_bits)) - 1);
    const auto shift = static_cast<int>(structure_.dac_slice_bits) * static_cast<int>(j);
    const int mask = (1 << structure_.dac_slice_bits) - 1;
    for (int64_t i = 0; i < count; ++i) {
      const int code = static_cast<int>(std::fabs(inputs[i]) * whole_steps + 0.5f);
      const float digit = static_cast<float>(code >> shift & mask) / digit_steps;
      out[i] = inputs[i] < 0 ? -digit : digit;
    }
  }

  // x_k (1 - (1 - k / n)^2), the share of the inputs that meets the resistance of the wires.
  void ramp_inputs(const float* x, int64_t rows, size_t t, float* out) const {
    const int64_t depth = product_.row_tiles[t].size();
    std::vector<float> ramp(static_cast<size_t>(depth));
    for (int64_t k = 0; k < depth; ++k) {
      const double rest = 1.0 - static_cast<double>(offset_in_tile(t) + k) / static_cast<double>(tile_depth(t));
      ramp[static_cast<size_t>(k)] = static_cast<float>(1.0 - rest * rest);
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t k = 0; k < depth; ++k) out[row * depth + k] = x[row * depth + k] * ramp[static_cast<size_t>(k)];
    }
  }

  // Step 4.
  void drop(size_t t, int64_t count, const float* currents, const float* ramped, float* y) const {
    const float ratio = static_cast<float>(tile_depth(t)) / device_.read_ir_drop_ratio;
    for (int64_t i = 0; i < count; ++i) {
      const float a = ratio * currents[i];
      y[i] -= device_.read_ir_drop * (a * (a * (0.05f * a - 0.2f) + 0.5f)) * ramped[i];
    }
  }

  // Arrays of a stack have converters of their own, all operands that are written the same ones.
  int64_t converter_matrices() const { return structure_.dynamic() ? 1 : product_.b_matrices; }

  // What columns have of their own: gain and offset of their ADCs, noise and nonlinearity of their outputs.
  void measure_columns() {
    if (structure_.adc_errors()) {
      gains_ = of_columns(kAdcGain, structure_.adc_columns, 1.0f, device_.adc_gain_sigma);
      offsets_ = of_columns(kAdcOffset, structure_.adc_columns, 0.0f, device_.adc_offset_sigma);
    }
    const auto magnitudes = [](float mean, std::vector<float> values) {
      for (float& value : values) value = std::fabs(mean * value);
      return values;
    };
    if (spreads_outputs_) {
      const float spread = device_.read_output_noise_spread;
      spreads_ = magnitudes(device_.read_output_noise, of_columns(kOutputNoiseSpread, 1, 1.0f, spread));
    }
    if (device_.adc_nonlinearity > 0) {
      const float spread = device_.adc_nonlinearity_sigma;
      bending_ =
          magnitudes(device_.adc_nonlinearity / device_.adc_bound, of_columns(kNonlinearitySpread, 1, 1.0f, spread));
    }
  }

  // Numbers around a center for every row tile and weight slice of every matrix; `share` columns have the same one.
  std::vector<float> of_columns(uint32_t stream, int64_t share, float center, float sigma) const {
    const auto tiles = static_cast<int64_t>(product_.row_tiles.size());
    // The converters of the columns in hand, and of all before them.
    const int64_t before = product_.first_column / share;
    const int64_t converters = (product_.first_column + product_.columns + share - 1) / share - before;
    std::vector<float> normals(static_cast<size_t>(converters));
    std::vector<float> values(static_cast<size_t>(converter_matrices() * tiles * product_.columns) * weight_slices_);
    for (int64_t row = 0; row < converter_matrices() * tiles; ++row) {
      for (size_t i = 0; i < weight_slices_; ++i) {
        Counter counter;
        counter.key0 = product_.controls->seed;
        if (structure_.dynamic()) {  // its columns may grow
          counter.c1 = static_cast<uint32_t>(tile_number(static_cast<size_t>(row)));
        } else {
          counter.block_word = BlockWord::kWide;
          counter.block = static_cast<uint64_t>(row) * blocks(converters);
        }
        counter.c2 = static_cast<uint32_t>(structure_.dynamic() ? structure_.site : structure_.array);
        counter.c3 = stream + (static_cast<uint32_t>(i) << 8);
        kernels().normals(counter, before, converters, normals.data());
        float* of_row = values.data() + converter_row(i, static_cast<size_t>(row % tiles), row / tiles);
        for (int64_t n = 0; n < product_.columns; ++n) {
          const int64_t own = (product_.first_column + n) / share - before;
          of_row[n] = center + strength_ * sigma * normals[static_cast<size_t>(own)];
        }
      }
    }
    return values;
  }

  int64_t converter_row(size_t i, size_t t, int64_t matrix) const {
    const size_t own = structure_.dynamic() ? 0 : static_cast<size_t>(matrix) * product_.row_tiles.size();
    return static_cast<int64_t>((own + t) * weight_slices_ + i) * product_.columns;
  }

  // The calibrated range of a weight slice in a row tile.
  const CalibratedRange& range_of(size_t i, size_t t, int64_t matrix) const {
    const auto tiles = static_cast<int64_t>(product_.row_tiles.size());
    const int64_t tile = structure_.dynamic() ? tile_number(t) : matrix * tiles + static_cast<int64_t>(t);
    const int64_t own = structure_.range_tiles > 1 ? tile : 0;
    const auto part = static_cast<int64_t>(i);
    const int64_t of_slice = structure_.converts_apart() ? part / 2 : part;
    const int64_t slice = structure_.range_slices > 1 ? of_slice : 0;
    const int64_t polarity = structure_.range_polarities > 1 && structure_.converts_apart() ? part % 2 : 0;
    const int64_t place = (own * structure_.range_slices + slice) * structure_.range_polarities + polarity;
    return product_.controls->ranges[static_cast<size_t>(place)];
  }

  void set_range(size_t i, size_t t, int64_t matrix, ReadRow& row) const {
    row.high = device_.adc_bound;
    if (structure_.adc == Range::kRows) row.high = static_cast<float>(tile_depth(t));
    if (structure_.adc == Range::kGranular) row.high = static_cast<float>(granular_step_ * pattern_.steps / 2);
    row.low = -row.high;
    if (structure_.adc == Range::kCalibrated) {
      const CalibratedRange& own = range_of(i, t, matrix);
      const float largest = std::max(std::fabs(own.low), std::fabs(own.high));
      const bool both_ends = structure_.adc_code == AdcCode::kOffsetBinary;
      row.low = both_ends ? own.low : -largest;
      row.high = both_ends ? own.high : largest;
    }
    // A last code at B takes what lies within half a step of it.
    const bool ends_at_bound =
        structure_.adc_code == AdcCode::kSignMagnitude && row.steps > 0 && std::fmod(row.steps, 2.0) == 0;
    row.most = ends_at_bound ? static_cast<float>(row.high * (1 + 1 / row.steps)) : row.high;
  }

  const float* scales(int64_t y_row, size_t t) const {
    const auto tiles = static_cast<int64_t>(product_.row_tiles.size());
    return product_.scales + (b_matrix(y_row) * tiles + static_cast<int64_t>(t)) * product_.columns;
  }

  bool may_repeat(double b) const {
    if (structure_.bound_management == BoundManagement::kNone || b > device_.adc_max_bound_factor) return false;
    if (input_.steps <= 0) return true;
    const double step = 2.0 * device_.dac_bound / input_.steps;
    return !(b > device_.adc_max_bound_resolution / step);
  }

  // i: what is read by itself, slices or of each slice both devices of its pairs.
  uint32_t pass_of(size_t i, size_t j) const {
    return static_cast<uint32_t>((structure_.converts_apart() ? i / 2 : i) * input_readings_ + j);
  }
  // The stream of random rounding where noise of a stream acts.
  static uint32_t rounding_of(uint32_t noise) { return noise - kRead + kRounding; }
  uint32_t stream_of(size_t i) const { return structure_.converts_apart() && i % 2 == 1 ? kReadNegativeArray : kRead; }

  // What all cells hold beside the weights, as one slice of the inputs finds it, in weights.
  float offset_of(size_t j, size_t t, int64_t y_row, const float* x, int64_t depth) const {
    if (product_.unit_columns == nullptr || product_.unit_columns->empty()) {
      double sum = 0;
      for (int64_t k = 0; k < depth; ++k) sum += x[k];
      return static_cast<float>(product_.decoding.offset * sum);
    }
    const Span tile = product_.row_tiles[t];
    const SampleRow place = locate(y_row);
    Scratch square_of(depth);
    const float* squared = square_of.data();
    square_inputs(x, depth, square_of.data());
    double total = 0;
    for (size_t i = 0; i < weight_slices_; ++i) {
      const float* cells = (*product_.unit_columns)[i].data() + b_matrix(y_row) * product_.depth + tile.begin;
      double sum = 0;
      double squares = 0;
      double variance = 0;
      double current = 0;
      double ramped = 0;
      for (int64_t k = 0; k < depth; ++k) {
        const double term = static_cast<double>(x[k]) * cells[k];
        const double rest = 1.0 - static_cast<double>(k) / static_cast<double>(depth);
        sum += term;
        squares += squared[k];
        variance += static_cast<double>(squared[k]) * (structure_.read_noise == ReadNoise::kProportional
                                                           ? static_cast<double>(cells[k]) * cells[k]
                                                           : std::fabs(cells[k]));
        current += std::fabs(term);
        ramped += term * (1.0 - rest * rest);
      }
      auto y = static_cast<float>(sum);
      const auto a = static_cast<float>(current);
      const auto along = static_cast<float>(ramped);
      if (ir_drop_) drop(t, 1, &a, &along, &y);
      if (noisy_) {
        const auto of_weights = static_cast<float>(needs_noise_weights(structure_) ? variance : squares);
        const float std = strength_ * std::sqrt(weight_noise_ * weight_noise_ * of_weights + output_noise_squared_);
        const NoiseRow noise{0, place.position, std, nullptr};
        const Counter counter = run_time(place, tile_stream(kUnitColumnRead, t, pass_of(i, j)));
        kernels().disturb_rows(counter, 0, &noise, 1, 1, &y, nullptr);
      }
      ReadRow row = pattern_;
      set_range(i, t, b_matrix(y_row), row);
      const float one = 1;
      row.scales = &one;
      float uniform = 0;
      if (rounds_outputs_) {
        kernels().uniforms(run_time(place, tile_stream(rounding_of(kUnitColumnRead), t, pass_of(i, j))), 0, 1,
                           &uniform);
        row.uniforms = &uniform;
      }
      float reading = 0;
      kernels().read_row(row, &y, 1, &reading);
      total += static_cast<double>(product_.decoding.factors[i]) * reading;
    }
    return static_cast<float>(total);
  }

  void take_offset(size_t j, size_t t, const Rows& rows, const float* x, int64_t depth) const {
    for (int64_t r = 0; r < rows.count; ++r) {
      const int64_t y_row = rows.y[r];
      const float alpha = rows.factors[r];
      if (alpha == 0) continue;
      const float offset = offset_of(j, t, y_row, x + r * depth, depth) * alpha * static_cast<float>(input_weight(j)) *
                           device_.adc_scale;
      const float* s = scales(y_row, t);
      float* y = output(rows, y_row);
      for (int64_t n = 0; n < product_.columns; ++n) y[n] -= offset * s[n];
    }
  }

  const CrossbarProduct& product_;
  const Structure& structure_;
  const Device& device_;
  float strength_;
  size_t weight_slices_;
  size_t input_readings_;     // conversions of one output, of each weight slice
  bool cuts_inputs_;          // slices of inputs are converted each by itself
  int64_t deepest_ = 0;       // row tile
  int64_t widest_ = 0;        // column group
  std::vector<float> gains_;  // [row tiles, weight slices, columns]
  std::vector<float> offsets_;
  std::vector<float> spreads_;  // standard deviation of output noise, if columns differ
  std::vector<float> bending_;
  InputRow input_;
  ReadRow pattern_;
  std::vector<SampleKey> keys_;  // of the samples of the batch
  float input_noise_ = 0;
  float weight_noise_ = 0;
  float devices_ = 1;  // of one value, each with noise of its own
  float output_noise_squared_ = 0;
  double granular_step_ = 0;
  bool noisy_ = false;
  bool rounds_outputs_ = false;   // at random
  bool bends_ = false;            // outputs are not linear
  bool spreads_outputs_ = false;  // columns have noise of their own
  Sum sum_;
  bool needs_variances_ = false;
  bool byte_variances_ = false;  // as products of bytes
  bool ir_drop_ = false;
  bool needs_peaks_ = false;
  bool codes_ = false;  // inputs are kept as codes, which makes their products faster
};

}  // namespace

void read_product(const CrossbarProduct& product, const Context& context) { Reader(product).run(context); }

void mark_lost_rows(const Context& context, const float* a, int64_t rows, int64_t depth, int64_t columns, float* y) {
  context.parallel_for((rows + kMostRowsPerTask - 1) / kMostRowsPerTask, [&](int64_t task) {
    for (int64_t r = task * kMostRowsPerTask; r < std::min(rows, (task + 1) * kMostRowsPerTask); ++r) {
      if (all_finite(a + r * depth, depth)) continue;
      std::fill(y + r * columns, y + (r + 1) * columns, kNotANumber);
    }
  });
}

namespace {

bool is_narrow(int64_t depth, int64_t columns) { return columns <= kMostNarrow && depth <= kDeepestNarrow; }

}  // namespace

const Packing& plain_packing(const Structure& structure, int64_t rows, int64_t columns) {
  // Windows that move by one cut lines out of images, others rows of the product.
  const bool by_columns =
      !structure.window.empty() && (is_narrow(rows, columns) || structure.window.back().stride == 1);
  return by_columns ? column_packing() : *kernels().float_packing;
}

namespace {

void multiply_rows(const Context& context, const Product& product, const float* packed) {
  const int64_t depth = product.depth;
  const int64_t columns = product.columns;
  // Many rows at once, because all weights pass by for each block of them; columns are what keeps threads busy.
  const int64_t row_blocks = (product.rows + kMostRowsOfProduct - 1) / kMostRowsOfProduct;
  const int64_t row_step = (product.rows + row_blocks - 1) / row_blocks;
  const int64_t panel = kernels().float_packing->panel_columns;
  const int64_t panels = (columns + panel - 1) / panel;
  const int64_t blocks = row_blocks * product.matrices;
  const int64_t column_blocks = std::min(panels, (kLeastTasks + blocks - 1) / blocks);
  const int64_t column_step = (panels + column_blocks - 1) / column_blocks * panel;
  const int64_t across = (columns + column_step - 1) / column_step;
  // Small matrices many at a time.
  const int64_t parts = blocks * across;
  const int64_t at_once = std::max<int64_t>(1, parts / kMostTasks);
  const int64_t b_size = kernels().float_packing->size(depth, columns);
  context.parallel_for((parts + at_once - 1) / at_once, [&](int64_t task) {
    for (int64_t part = task * at_once; part < std::min(parts, (task + 1) * at_once); ++part) {
      const int64_t matrix = part / across / row_blocks;
      const int64_t row = part / across % row_blocks * row_step;
      const int64_t column = part % across * column_step;
      kernels().multiply_packed(product.a + (product.a_matrix(matrix) * product.rows + row) * depth, depth,
                                std::min(row_step, product.rows - row),
                                packed + product.b_matrix(matrix) * b_size + column * depth, depth,
                                std::min(column_step, columns - column),
                                product.y + (matrix * product.rows + row) * columns + column, columns, nullptr);
    }
  });
}

// Rows are cut out of the images, and what comes out is put into images.
void multiply_cut_rows(const Context& context, const Product& product, const float* packed) {
  const int64_t depth = product.depth;
  const int64_t columns = product.columns;
  int64_t step = std::min(kMostRowsOfProduct, kFloatsOfPatches / (depth + columns));
  step = std::min(step, (product.rows * product.matrices + kLeastTasks - 1) / kLeastTasks);
  step = std::max<int64_t>(1, step / kRowsAtOnce) * kRowsAtOnce;
  const int64_t blocks = (product.rows + step - 1) / step;
  const int64_t b_size = kernels().float_packing->size(depth, columns);
  context.parallel_for(blocks * product.matrices, [&](int64_t task) {
    const int64_t matrix = task / blocks;
    const int64_t first = task % blocks * step;
    const int64_t count = std::min(step, product.rows - first);
    Scratch rows(count * depth);
    Scratch results(count * columns);
    product.patches->cut(product.a + matrix * product.patches->image_size(), first, count, {0, depth}, rows.data());
    kernels().multiply_packed(rows.data(), depth, count, packed + product.b_matrix(matrix) * b_size, depth, columns,
                              results.data(), columns, nullptr);
    transpose(results.data(), columns, count, columns, product.y + matrix * columns * product.rows + first,
              product.rows);
  });
}

// The other way round, Y' = B' A', whose sums are the same: then Y comes out as an image, and what is cut lies in it
// as in the image it is cut from.
void multiply_patches(const Context& context, const Product& product, const float* columns_of_b) {
  const int64_t panel = kernels().float_packing->panel_columns;
  const int64_t all = (product.rows + panel - 1) / panel;  // panels
  int64_t step = std::max<int64_t>(1, kFloatsOfPatches / std::max<int64_t>(1, product.depth * panel));
  step = std::min(step, std::max<int64_t>(1, all * product.matrices / kLeastTasks));
  const int64_t blocks = (all + step - 1) / step;
  step = (all + blocks - 1) / blocks;
  const int64_t parts = blocks * product.matrices;
  const int64_t at_once = std::max<int64_t>(1, parts / kMostTasks);
  context.parallel_for((parts + at_once - 1) / at_once, [&](int64_t task) {
    Scratch panels(step * panel * product.depth);
    for (int64_t part = task * at_once; part < std::min(parts, (task + 1) * at_once); ++part) {
      const int64_t matrix = part / blocks;
      const int64_t first = part % blocks * step * panel;
      const int64_t count = std::min(step * panel, product.rows - first);
      if (count <= 0) continue;
      product.patches->cut_panels(product.a + product.a_matrix(matrix) * product.patches->image_size(), first, count,
                                  panel, panels.data());
      kernels().multiply_packed(columns_of_b + product.b_matrix(matrix) * product.depth * product.columns,
                                product.depth, product.columns, panels.data(), product.depth, count,
                                product.y + matrix * product.columns * product.rows + first, product.rows, nullptr);
    }
  });
}

// Of few columns, where nothing is converted.
void multiply_narrow(const Context& context, const Product& product, const float* columns_of_b) {
  const float ones[kMostNarrow] = {1, 1, 1, 1};
  NarrowRead read;
  read.alpha = 1;
  read.output.scales = ones;
  read.marks_lost = false;
  for_narrow(context, product, [&](const NarrowRows& rows) {
    kernels().read_narrow(read, rows.x, rows.offsets, product.depth, rows.count,
                          columns_of_b + product.b_matrix(rows.matrix) * product.depth * product.columns,
                          product.columns, nullptr, rows.y, product.rows);
  });
}

}  // namespace

void multiply_plain(const Context& context, const Product& product, const Packing& packing, const float* packed) {
  if (product.patches == nullptr) {
    multiply_rows(context, product, packed);
  } else if (&packing != &column_packing()) {
    multiply_cut_rows(context, product, packed);
  } else if (is_narrow(product.depth, product.columns)) {
    multiply_narrow(context, product, packed);
  } else {
    multiply_patches(context, product, packed);
  }
}

}  // namespace emu
