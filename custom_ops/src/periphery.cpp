#include "periphery.h"

#include <algorithm>
#include <cmath>
#include <mutex>

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

constexpr size_t kMostFreeBuffers = 16;
constexpr int64_t kValuesPerTask = 8192;

int64_t rows_per_task(int64_t width) { return std::max<int64_t>(1, kValuesPerTask / std::max<int64_t>(1, width)); }

void parallel_rows(const Context& context, int64_t rows, int64_t width, const std::function<void(int64_t)>& body) {
  const int64_t step = rows_per_task(width);
  context.parallel_for((rows + step - 1) / step, [&](int64_t task) {
    const int64_t last = std::min(rows, (task + 1) * step);
    for (int64_t row = task * step; row < last; ++row) body(row);
  });
}

Shape with(Shape leading, int64_t rows, int64_t columns) {
  leading.push_back(rows);
  leading.push_back(columns);
  return leading;
}

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

// The reading of one product, tile by tile; within a tile, one pass for every slice of the inputs and of the weights.
class Reader {
 public:
  Reader(const CrossbarProduct& product, const Context& context, const MatMul& matmul)
      : product_(product),
        structure_(*product.structure),
        device_(product.controls->device),
        strength_(product.controls->strength),
        context_(context),
        matmul_(matmul),
        a_rows_(emu::product(product.a_leading) * product.rows),
        y_rows_(emu::product(product.y_leading) * product.rows),
        blocks_per_row_(blocks(product.columns)),
        weight_slices_(product.decoding.factors.size()),
        input_slices_(static_cast<size_t>(structure_.input_slices(device_))),
        alpha_(static_cast<size_t>(a_rows_)) {
    input_.steps = structure_.dac_steps(device_);
    input_.bound = device_.dac_bound;
    input_.offset_binary = structure_.dac_offset_binary;
    input_.clip = structure_.dac != Range::kNone;
    if (structure_.input_noise()) input_noise_ = strength_ * device_.input_noise;
    output_noise_squared_ = structure_.output_noise() ? device_.output_noise * device_.output_noise : 0.0f;
    if (structure_.weight_noise != WeightNoise::kNone) weight_noise_ = device_.weight_noise;
    noisy_ = strength_ * (weight_noise_ + output_noise_squared_) > 0;
    needs_variances_ = noisy_ && needs_noise_weights(structure_) && weight_noise_ > 0;
    ir_drop_ = structure_.ir_drop == IrDrop::kFormula && device_.ir_drop > 0;
    pattern_.range = structure_.adc == Range::kNone     ? ReadRow::Range::kNone
                     : structure_.adc == Range::kAbsMax ? ReadRow::Range::kAbsMax
                                                        : ReadRow::Range::kGiven;
    pattern_.code = structure_.adc_code;
    pattern_.steps = structure_.adc_steps(device_);
    pattern_.noisy = noisy_;
    pattern_.noise.key0 = product.controls->seed;
    pattern_.noise.key1 = product.controls->read_seed;
    pattern_.noise.c2 = static_cast<uint32_t>(structure_.site);
    if (structure_.adc == Range::kGranular) granular_step_ = granular_step();
  }

  void run() {
    int64_t deepest = 0;
    for (const Span& tile : product_.row_tiles) deepest = std::max(deepest, tile.size());
    int64_t widest = 0;
    for (const Span& group : product_.column_groups) widest = std::max(widest, group.size());
    const size_t passes = weight_slices_ * input_slices_;
    Scratch inputs(a_rows_ * deepest);
    Scratch sliced(input_slices_ > 1 ? a_rows_ * deepest : 0);
    Scratch derived(needs_variances_ || ir_drop_ ? a_rows_ * deepest : 0);
    const bool in_place = product_.column_groups.size() == 1;
    const bool needs_partial = !in_place || product_.row_tiles.size() > 1 || passes > 1;
    Scratch partial(needs_partial ? y_rows_ * widest : 0);
    Scratch variances(needs_variances_ ? y_rows_ * widest : 0);
    Scratch currents(ir_drop_ ? 2 * y_rows_ * widest : 0);
    if (structure_.weight_noise == WeightNoise::kAdditiveConstant) norms_.resize(static_cast<size_t>(a_rows_));

    for (size_t t = 0; t < product_.row_tiles.size(); ++t) {
      const Span tile = product_.row_tiles[t];
      convert_inputs(tile, inputs.data());
      measure_adc_errors(t);
      for (size_t j = 0; j < input_slices_; ++j) {
        const float* x = inputs.data();
        if (input_slices_ > 1) {
          cut_inputs(j, inputs.data(), a_rows_ * tile.size(), sliced.data());
          x = sliced.data();
        }
        measure_norms(x, tile.size());
        for (size_t i = 0; i < weight_slices_; ++i) {
          for (size_t g = 0; g < product_.column_groups.size(); ++g) {
            const Span group = product_.column_groups[g];
            const bool first = t == 0 && j == 0 && i == 0;
            float* products = in_place && first ? product_.y : partial.data();
            multiply(x, product_.tile(i, t, g), tile, group, products);
            if (ir_drop_) {
              float* a = currents.data();
              float* ramped = a + y_rows_ * group.size();
              kernels().absolute(x, a_rows_ * tile.size(), derived.data());
              multiply(derived.data(), product_.magnitude_tile(i, t, g), tile, group, a);
              ramp_inputs(x, a_rows_, tile.size(), derived.data());
              multiply(derived.data(), product_.tile(i, t, g), tile, group, ramped);
              drop(tile.size(), y_rows_ * group.size(), a, ramped, products);
            }
            if (needs_variances_) {
              kernels().square(x, a_rows_ * tile.size(), derived.data());
              multiply(derived.data(), product_.noise_tile(i, t, g), tile, group, variances.data());
            }
            read(i, j, t, g, products, needs_variances_ ? variances.data() : nullptr);
          }
        }
        if (product_.decoding.offset != 0) take_offset(j, t, x, tile.size());
      }
    }
  }

 private:
  static uint64_t blocks(int64_t columns) { return static_cast<uint64_t>((columns + 3) / 4); }

  int64_t a_row(int64_t y_row) const {
    if (product_.a_of.empty()) return y_row;
    return product_.a_of[static_cast<size_t>(y_row / product_.rows)] * product_.rows + y_row % product_.rows;
  }

  int64_t b_matrix(int64_t y_row) const {
    const int64_t matrix = y_row / product_.rows;
    return product_.b_of.empty() ? matrix : product_.b_of[static_cast<size_t>(matrix)];
  }

  float input_scale(const float* x, int64_t count) const {
    switch (structure_.dac) {
      case Range::kAbsMax: {
        const float largest = kernels().largest_magnitude(x, count);
        return device_.dac_limit > 0 ? std::min(largest, device_.dac_limit) : largest;
      }
      case Range::kFixed:
        return device_.dac_max;
      case Range::kCalibrated:
        return product_.controls->calibrated_input;
      default:
        return 1.0f;
    }
  }

  // Weight of an input slice.
  double input_weight(size_t j) const {
    if (structure_.dac_slice_bits == 0) return 1.0;
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
    } else if (device_.cell_bits > 0) {
      cell_steps = std::exp2(static_cast<double>(device_.cell_bits)) - 1;
    } else if (structure_.weight_bits > 0) {
      cell_steps = std::exp2(static_cast<double>(structure_.weight_bits - 1)) - 1;
    }
    const double input_steps = structure_.dac_slice_bits > 0
                                   ? std::exp2(static_cast<double>(structure_.dac_slice_bits)) - 1
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

  // Steps 1 and 2 for one row; factor is alpha * b.
  void convert_input(int64_t row_of_a, const Span& tile, float factor, float* out) const {
    InputRow row = input_;
    row.inverse = factor > 0 ? 1.0f / factor : 0.0f;
    kernels().quantize_input(row, product_.a + row_of_a * product_.depth + tile.begin, tile.size(), out);
    if (input_noise_ > 0) {
      const SampleRow place = product_.a_samples->locate(row_of_a);
      Counter counter = pattern_.noise;
      counter.c1 = place.sample;
      counter.c3 = kInputNoise;
      counter.block = place.row * blocks(product_.depth);
      kernels().add_noise(counter, input_noise_, tile.begin, tile.size(), out);
    }
  }

  void convert_inputs(const Span& tile, float* inputs) {
    const int64_t depth = tile.size();
    parallel_rows(context_, a_rows_, depth, [&](int64_t row) {
      const float alpha = input_scale(product_.a + row * product_.depth + tile.begin, depth);
      alpha_[static_cast<size_t>(row)] = alpha;
      convert_input(row, tile, alpha, inputs + row * depth);
    });
  }

  void measure_norms(const float* x, int64_t depth) {
    if (norms_.empty()) return;
    parallel_rows(context_, a_rows_, depth, [&](int64_t row) {
      norms_[static_cast<size_t>(row)] = kernels().sum_of_squares(x + row * depth, depth);
    });
  }

  // Digit j of the magnitudes, with their signs.
  void cut_inputs(size_t j, const float* inputs, int64_t count, float* out) const {
    const auto whole_steps = static_cast<float>(std::exp2(static_cast<double>(device_.dac_bits) - 1) - 1);
    const auto digit_steps = static_cast<float>(std::exp2(static_cast<double>(structure_.dac_slice_bits)) - 1);
    const auto shift = static_cast<int>(structure_.dac_slice_bits) * static_cast<int>(j);
    const int mask = (1 << structure_.dac_slice_bits) - 1;
    constexpr int64_t kPart = 1 << 15;
    context_.parallel_for((count + kPart - 1) / kPart, [&](int64_t part) {
      for (int64_t i = part * kPart; i < std::min(count, (part + 1) * kPart); ++i) {
        const int code = static_cast<int>(std::fabs(inputs[i]) * whole_steps + 0.5f);
        const float digit = static_cast<float>(code >> shift & mask) / digit_steps;
        out[i] = inputs[i] < 0 ? -digit : digit;
      }
    });
  }

  // x_k (1 - (1 - k / n)^2), the share of the inputs that meets the resistance of the wires.
  static void ramp_inputs(const float* x, int64_t rows, int64_t depth, float* out) {
    std::vector<float> ramp(static_cast<size_t>(depth));
    for (int64_t k = 0; k < depth; ++k) {
      const double rest = 1.0 - static_cast<double>(k) / static_cast<double>(depth);
      ramp[static_cast<size_t>(k)] = static_cast<float>(1.0 - rest * rest);
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t k = 0; k < depth; ++k) out[row * depth + k] = x[row * depth + k] * ramp[static_cast<size_t>(k)];
    }
  }

  // Step 4.
  void drop(int64_t depth, int64_t count, const float* currents, const float* ramped, float* y) const {
    const float ratio = static_cast<float>(depth) / device_.ir_drop_ratio;
    for (int64_t i = 0; i < count; ++i) {
      const float a = ratio * currents[i];
      y[i] -= device_.ir_drop * (a * (a * (0.05f * a - 0.2f) + 0.5f)) * ramped[i];
    }
  }

  void multiply(const float* a, const float* b, const Span& tile, const Span& group, float* y) const {
    matmul_.run(context_, a, with(product_.a_leading, product_.rows, tile.size()), b,
                with(product_.b_leading, tile.size(), group.size()), y,
                with(product_.y_leading, product_.rows, group.size()));
  }

  // Gain and offset of the ADC behind each column, for every weight slice.
  void measure_adc_errors(size_t t) {
    if (!structure_.adc_errors()) return;
    const int64_t converters = (product_.columns + structure_.adc_columns - 1) / structure_.adc_columns;
    std::vector<float> normals(static_cast<size_t>(converters));
    gains_.resize(weight_slices_ * static_cast<size_t>(product_.columns));
    offsets_.resize(gains_.size());
    for (size_t i = 0; i < weight_slices_; ++i) {
      Counter counter;
      counter.key0 = product_.controls->seed;
      counter.wide_block = true;
      counter.block = static_cast<uint64_t>(t) * blocks(converters);
      counter.c2 = static_cast<uint32_t>(structure_.dynamic() ? structure_.site : structure_.array);
      const auto fill = [&](uint32_t stream, float center, float sigma, std::vector<float>& values) {
        counter.c3 = stream + (static_cast<uint32_t>(i) << 8);
        kernels().normals(counter, 0, converters, normals.data());
        float* row = values.data() + static_cast<int64_t>(i) * product_.columns;
        for (int64_t n = 0; n < product_.columns; ++n) {
          row[n] = center + strength_ * sigma * normals[static_cast<size_t>(n / structure_.adc_columns)];
        }
      };
      fill(kAdcGain, 1.0f, device_.gain_sigma, gains_);
      fill(kAdcOffset, 0.0f, device_.offset_sigma, offsets_);
    }
  }

  void set_range(size_t t, ReadRow& row) const {
    row.high = device_.adc_bound;
    if (structure_.adc == Range::kRows) row.high = static_cast<float>(product_.row_tiles[t].size());
    if (structure_.adc == Range::kGranular) row.high = static_cast<float>(granular_step_ * pattern_.steps / 2);
    row.low = -row.high;
    if (structure_.adc == Range::kCalibrated) {
      const float low = product_.controls->calibrated_low;
      const float high = product_.controls->calibrated_high;
      const float largest = std::max(std::fabs(low), std::fabs(high));
      const bool both_ends = structure_.adc_code == AdcCode::kOffsetBinary;
      row.low = both_ends ? low : -largest;
      row.high = both_ends ? high : largest;
    }
  }

  // Steps 5, 6 and 8 for one row. Returns whether it saturated and must be repeated.
  bool read_row(size_t i, size_t j, size_t t, size_t g, int64_t y_row, uint32_t pass, float factor, float norm,
                float* products, float* variances, bool may_repeat) const {
    const Span group = product_.column_groups[g];
    ReadRow row = pattern_;
    const SampleRow place = product_.samples->locate(y_row);
    row.noise.c1 = place.sample;
    row.noise.block = place.row * blocks_per_row_;
    row.noise.c3 = kRead + (static_cast<uint32_t>(t) << 8) + (pass << 24);
    row.first_column = group.begin;
    if (noisy_) {
      if (variances != nullptr) {
        kernels().noise_std(variances, weight_noise_ * weight_noise_, output_noise_squared_, strength_, group.size(),
                            variances);
        row.noise_std_each = variances;
      } else {
        row.noise_std = strength_ * std::sqrt(weight_noise_ * weight_noise_ * norm + output_noise_squared_);
      }
    }
    if (!gains_.empty()) {
      row.gain = gains_.data() + static_cast<int64_t>(i) * product_.columns + group.begin;
      row.offset = offsets_.data() + static_cast<int64_t>(i) * product_.columns + group.begin;
    }
    set_range(t, row);
    row.stop_if_saturated = may_repeat;
    row.factor = factor * product_.decoding.factors[i] * static_cast<float>(input_weight(j));
    row.scales = scales(y_row, t) + group.begin;
    row.accumulate = t > 0 || i > 0 || j > 0;
    return kernels().read_row(row, products, group.size(), product_.y + y_row * product_.columns + group.begin);
  }

  const float* scales(int64_t y_row, size_t t) const {
    const auto tiles = static_cast<int64_t>(product_.row_tiles.size());
    return product_.scales + (b_matrix(y_row) * tiles + static_cast<int64_t>(t)) * product_.columns;
  }

  bool may_repeat(double b) const {
    if (!structure_.iterative || b > device_.max_bound_factor) return false;
    if (input_.steps <= 0) return true;
    const double step = 2.0 * device_.dac_bound / input_.steps;
    return !(b > device_.max_bound_resolution / step);
  }

  uint32_t pass_of(size_t i, size_t j) const { return static_cast<uint32_t>(i * input_slices_ + j); }

  void read(size_t i, size_t j, size_t t, size_t g, float* products, float* variances) {
    const Span group = product_.column_groups[g];
    std::vector<char> saturated(structure_.iterative ? static_cast<size_t>(y_rows_) : 0, 0);
    const bool repeat = may_repeat(1.0);
    const bool first = t == 0 && i == 0 && j == 0;
    parallel_rows(context_, y_rows_, 4 * group.size(), [&](int64_t y_row) {
      const int64_t from = a_row(y_row);
      const float alpha = alpha_[static_cast<size_t>(from)];
      float* row = products + y_row * group.size();
      if (alpha == 0) {  // nothing is applied, so nothing is read
        float* y = product_.y + y_row * product_.columns + group.begin;
        if (first) std::fill(y, y + group.size(), 0.0f);
        return;
      }
      const bool again =
          read_row(i, j, t, g, y_row, pass_of(i, j), alpha, norms_.empty() ? 0.0f : norms_[static_cast<size_t>(from)],
                   row, variances == nullptr ? nullptr : variances + y_row * group.size(), repeat);
      if (again) saturated[static_cast<size_t>(y_row)] = 1;
    });
    if (!repeat) return;
    std::vector<int64_t> again;
    for (int64_t row = 0; row < y_rows_; ++row) {
      if (saturated[static_cast<size_t>(row)]) again.push_back(row);
    }
    double b = 1;
    for (uint32_t attempt = 1; !again.empty(); ++attempt) {
      b *= 2;
      again = repeat_rows(t, g, again, attempt, b);
    }
  }

  // Step 7: reads the given rows again with inputs divided by b. Returns those that must be read once more.
  std::vector<int64_t> repeat_rows(size_t t, size_t g, const std::vector<int64_t>& rows, uint32_t attempt, double b) {
    std::vector<int64_t> again;
    // Rows of one matrix of B at a time.
    for (size_t first = 0; first < rows.size();) {
      const int64_t matrix = b_matrix(rows[first]);
      size_t last = first;
      while (last < rows.size() && b_matrix(rows[last]) == matrix) ++last;
      repeat_matrix_rows(t, g, matrix, rows.data() + first, static_cast<int64_t>(last - first), attempt, b, again);
      first = last;
    }
    return again;
  }

  void repeat_matrix_rows(size_t t, size_t g, int64_t matrix, const int64_t* rows, int64_t count, uint32_t attempt,
                          double b, std::vector<int64_t>& again) {
    const Span tile = product_.row_tiles[t];
    const int64_t depth = tile.size();
    const int64_t width = product_.column_groups[g].size();
    Scratch inputs(count * depth);
    Scratch products(count * width);
    Scratch derived(needs_variances_ || ir_drop_ ? count * depth : 0);
    Scratch variances(needs_variances_ ? count * width : 0);
    Scratch currents(ir_drop_ ? 2 * count * width : 0);
    std::vector<float> norms(static_cast<size_t>(count), 0.0f);
    const auto factor = [&](int64_t y_row) {
      return static_cast<float>(alpha_[static_cast<size_t>(a_row(y_row))] * b);
    };
    parallel_rows(context_, count, depth, [&](int64_t i) {
      float* out = inputs.data() + i * depth;
      convert_input(a_row(rows[i]), tile, factor(rows[i]), out);
      if (!norms_.empty()) norms[static_cast<size_t>(i)] = kernels().sum_of_squares(out, depth);
    });
    const int64_t offset = matrix * depth * width;
    const auto times = [&](const float* x, const float* values, float* y) {
      matmul_.run(context_, x, {count, depth}, values + offset, {depth, width}, y, {count, width});
    };
    times(inputs.data(), product_.tile(0, t, g), products.data());
    if (ir_drop_) {
      float* ramped = currents.data() + count * width;
      kernels().absolute(inputs.data(), count * depth, derived.data());
      times(derived.data(), product_.magnitude_tile(0, t, g), currents.data());
      ramp_inputs(inputs.data(), count, depth, derived.data());
      times(derived.data(), product_.tile(0, t, g), ramped);
      drop(depth, count * width, currents.data(), ramped, products.data());
    }
    if (needs_variances_) {
      kernels().square(inputs.data(), count * depth, derived.data());
      times(derived.data(), product_.noise_tile(0, t, g), variances.data());
    }
    std::vector<char> saturated(static_cast<size_t>(count), 0);
    const bool repeat = may_repeat(b);
    parallel_rows(context_, count, 4 * width, [&](int64_t i) {
      saturated[static_cast<size_t>(i)] =
          read_row(0, 0, t, g, rows[i], attempt, factor(rows[i]), norms[static_cast<size_t>(i)],
                   products.data() + i * width, needs_variances_ ? variances.data() + i * width : nullptr, repeat);
    });
    for (int64_t i = 0; i < count; ++i) {
      if (saturated[static_cast<size_t>(i)]) again.push_back(rows[i]);
    }
  }

  // What all cells hold beside the weights, as one slice of the inputs finds it, in weights.
  float offset_of(size_t j, size_t t, int64_t y_row, const float* x, int64_t depth) const {
    if (product_.unit_columns == nullptr || product_.unit_columns->empty()) {
      double sum = 0;
      for (int64_t k = 0; k < depth; ++k) sum += x[k];
      return static_cast<float>(product_.decoding.offset * sum);
    }
    const Span tile = product_.row_tiles[t];
    const SampleRow place = product_.samples->locate(y_row);
    double total = 0;
    for (size_t i = 0; i < weight_slices_; ++i) {
      const float* cells = (*product_.unit_columns)[i].data() + tile.begin;
      double sum = 0;
      double squares = 0;
      double variance = 0;
      double current = 0;
      double ramped = 0;
      for (int64_t k = 0; k < depth; ++k) {
        const double term = static_cast<double>(x[k]) * cells[k];
        const double rest = 1.0 - static_cast<double>(k) / static_cast<double>(depth);
        sum += term;
        squares += static_cast<double>(x[k]) * x[k];
        variance += static_cast<double>(x[k]) * x[k] *
                    (structure_.weight_noise == WeightNoise::kProportional ? static_cast<double>(cells[k]) * cells[k]
                                                                           : std::fabs(cells[k]));
        current += std::fabs(term);
        ramped += term * (1.0 - rest * rest);
      }
      auto y = static_cast<float>(sum);
      const auto a = static_cast<float>(current);
      const auto along = static_cast<float>(ramped);
      if (ir_drop_) drop(depth, 1, &a, &along, &y);
      ReadRow row = pattern_;
      row.noise.c1 = place.sample;
      row.noise.block = place.row;
      row.noise.c3 = kUnitColumnRead + (static_cast<uint32_t>(t) << 8) + (pass_of(i, j) << 24);
      const double of_weights = structure_.weight_noise == WeightNoise::kAdditiveConstant ? squares : variance;
      row.noise_std =
          strength_ * std::sqrt(weight_noise_ * weight_noise_ * static_cast<float>(of_weights) + output_noise_squared_);
      set_range(t, row);
      const float one = 1;
      row.scales = &one;
      float reading = 0;
      kernels().read_row(row, &y, 1, &reading);
      total += static_cast<double>(product_.decoding.factors[i]) * reading;
    }
    return static_cast<float>(total);
  }

  void take_offset(size_t j, size_t t, const float* x, int64_t depth) const {
    parallel_rows(context_, y_rows_, product_.columns, [&](int64_t y_row) {
      const int64_t from = a_row(y_row);
      const float alpha = alpha_[static_cast<size_t>(from)];
      if (alpha == 0) return;
      const float offset =
          offset_of(j, t, y_row, x + from * depth, depth) * alpha * static_cast<float>(input_weight(j));
      const float* s = scales(y_row, t);
      float* y = product_.y + y_row * product_.columns;
      for (int64_t n = 0; n < product_.columns; ++n) y[n] -= offset * s[n];
    });
  }

  const CrossbarProduct& product_;
  const Structure& structure_;
  const Device& device_;
  float strength_;
  const Context& context_;
  const MatMul& matmul_;
  int64_t a_rows_;
  int64_t y_rows_;
  uint64_t blocks_per_row_;
  size_t weight_slices_;
  size_t input_slices_;
  std::vector<float> alpha_;  // of each row of A in the current tile
  std::vector<float> norms_;  // squared, likewise; only for additive constant weight noise
  std::vector<float> gains_;  // [weight slices, columns] of the current tile
  std::vector<float> offsets_;
  InputRow input_;
  ReadRow pattern_;
  float input_noise_ = 0;
  float weight_noise_ = 0;
  float output_noise_squared_ = 0;
  double granular_step_ = 0;
  bool noisy_ = false;
  bool needs_variances_ = false;
  bool ir_drop_ = false;
};

}  // namespace

void read_product(const CrossbarProduct& product, const Context& context, const MatMul& matmul) {
  Reader(product, context, matmul).run();
}

}  // namespace emu
