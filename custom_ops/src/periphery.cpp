#include "periphery.h"

#include <algorithm>
#include <cmath>
#include <mutex>

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

// The reading of one product, tile by tile.
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
        blocks_per_row_(static_cast<uint64_t>((product.columns + 3) / 4)),
        alpha_(static_cast<size_t>(a_rows_)) {
    input_.steps = structure_.dac == Range::kNone ? 0.0 : device_.dac_steps();
    input_.bound = device_.dac_bound;
    input_.clip = structure_.dac != Range::kNone;
    output_noise_squared_ = structure_.output_noise ? device_.output_noise * device_.output_noise : 0.0f;
    if (structure_.weight_noise != WeightNoise::kNone) weight_noise_ = device_.weight_noise;
    noisy_ = strength_ * (weight_noise_ + output_noise_squared_) > 0;
    pattern_.range = structure_.adc == Range::kNone    ? ReadRow::Range::kNone
                     : structure_.adc == Range::kFixed ? ReadRow::Range::kFixed
                                                       : ReadRow::Range::kAbsMax;
    pattern_.steps = structure_.adc == Range::kNone ? 0.0 : device_.adc_steps();
    pattern_.bound = device_.adc_bound;
    pattern_.noisy = noisy_;
    pattern_.noise.key0 = product.controls->seed;
    pattern_.noise.key1 = product.controls->read_seed;
    pattern_.noise.c2 = static_cast<uint32_t>(structure_.site);
  }

  void run() {
    int64_t deepest = 0;
    for (const Span& tile : product_.row_tiles) deepest = std::max(deepest, tile.size());
    int64_t widest = 0;
    for (const Span& group : product_.column_groups) widest = std::max(widest, group.size());
    Scratch inputs(a_rows_ * deepest);
    const bool needs_squares = noisy_ && structure_.weight_noise == WeightNoise::kPcmRead && weight_noise_ > 0;
    Scratch squares(needs_squares ? a_rows_ * deepest : 0);
    const bool in_place = product_.column_groups.size() == 1;
    const bool needs_partial = !in_place || product_.row_tiles.size() > 1;
    Scratch partial(needs_partial ? y_rows_ * widest : 0);
    Scratch variances(needs_squares ? y_rows_ * widest : 0);
    if (structure_.weight_noise == WeightNoise::kAdditiveConstant) norms_.resize(static_cast<size_t>(a_rows_));

    for (size_t t = 0; t < product_.row_tiles.size(); ++t) {
      const Span tile = product_.row_tiles[t];
      convert_inputs(tile, inputs.data(), squares.data(), needs_squares);
      for (size_t g = 0; g < product_.column_groups.size(); ++g) {
        const Span group = product_.column_groups[g];
        float* products = in_place && t == 0 ? product_.y : partial.data();
        multiply(inputs.data(), product_.tile(t, g), tile, group, products);
        if (needs_squares) multiply(squares.data(), product_.absolute_tile(t, g), tile, group, variances.data());
        read(t, g, products, needs_squares ? variances.data() : nullptr);
      }
    }
  }

 private:
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
      case Range::kAbsMax:
        return kernels().largest_magnitude(x, count);
      case Range::kFixed:
        return device_.dac_max;
      case Range::kNone:
        break;
    }
    return 1.0f;
  }

  // Steps 1 and 2 for one row; factor is alpha * b.
  void convert_input(const float* x, int64_t count, float factor, float* out) const {
    InputRow row = input_;
    row.inverse = factor > 0 ? 1.0f / factor : 0.0f;
    kernels().quantize_input(row, x, count, out);
  }

  void convert_inputs(const Span& tile, float* inputs, float* squares, bool needs_squares) {
    const int64_t depth = tile.size();
    parallel_rows(context_, a_rows_, depth, [&](int64_t row) {
      const float* x = product_.a + row * product_.depth + tile.begin;
      const float alpha = input_scale(x, depth);
      float* out = inputs + row * depth;
      alpha_[static_cast<size_t>(row)] = alpha;
      convert_input(x, depth, alpha, out);
      if (!norms_.empty()) norms_[static_cast<size_t>(row)] = kernels().sum_of_squares(out, depth);
      if (needs_squares) kernels().square(out, depth, squares + row * depth);
    });
  }

  void multiply(const float* a, const float* b, const Span& tile, const Span& group, float* y) const {
    matmul_.run(context_, a, with(product_.a_leading, product_.rows, tile.size()), b,
                with(product_.b_leading, tile.size(), group.size()), y,
                with(product_.y_leading, product_.rows, group.size()));
  }

  // Steps 4, 5 and 7 for one row. Returns whether it saturated and must be repeated.
  bool read_row(size_t t, size_t g, int64_t y_row, uint32_t attempt, float factor, float norm, float* products,
                float* variances, bool may_repeat) const {
    const Span group = product_.column_groups[g];
    ReadRow row = pattern_;
    const SampleRow place = product_.samples->locate(y_row);
    row.noise.c1 = place.sample;
    row.noise.block = place.row * blocks_per_row_;
    row.noise.c3 = kRead + (static_cast<uint32_t>(t) << 8) + (attempt << 24);
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
    row.stop_if_saturated = may_repeat;
    row.factor = factor;
    const auto tiles = static_cast<int64_t>(product_.row_tiles.size());
    row.scales = product_.scales + (b_matrix(y_row) * tiles + static_cast<int64_t>(t)) * product_.columns + group.begin;
    row.accumulate = t > 0;
    return kernels().read_row(row, products, group.size(), product_.y + y_row * product_.columns + group.begin);
  }

  bool may_repeat(double b) const {
    if (!structure_.iterative || b > device_.max_bound_factor) return false;
    if (input_.steps <= 0) return true;
    const double step = 2.0 * device_.dac_bound / input_.steps;
    return !(b > device_.max_bound_resolution / step);
  }

  void read(size_t t, size_t g, float* products, float* variances) {
    const Span group = product_.column_groups[g];
    std::vector<char> saturated(structure_.iterative ? static_cast<size_t>(y_rows_) : 0, 0);
    const bool repeat = may_repeat(1.0);
    parallel_rows(context_, y_rows_, 4 * group.size(), [&](int64_t y_row) {
      const int64_t from = a_row(y_row);
      const float alpha = alpha_[static_cast<size_t>(from)];
      float* row = products + y_row * group.size();
      if (alpha == 0) {  // nothing is applied, so nothing is read
        float* y = product_.y + y_row * product_.columns + group.begin;
        if (t == 0) std::fill(y, y + group.size(), 0.0f);
        return;
      }
      const bool again = read_row(t, g, y_row, 0, alpha, norms_.empty() ? 0.0f : norms_[static_cast<size_t>(from)], row,
                                  variances == nullptr ? nullptr : variances + y_row * group.size(), repeat);
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

  // Step 6: reads the given rows again with inputs divided by b. Returns those that must be read once more.
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
    const Span group = product_.column_groups[g];
    const int64_t depth = tile.size();
    const int64_t width = group.size();
    const bool needs_squares = noisy_ && structure_.weight_noise == WeightNoise::kPcmRead && weight_noise_ > 0;
    Scratch inputs(count * depth);
    Scratch products(count * width);
    Scratch squares(needs_squares ? count * depth : 0);
    Scratch variances(needs_squares ? count * width : 0);
    std::vector<float> norms(static_cast<size_t>(count), 0.0f);
    const auto factor = [&](int64_t y_row) {
      return static_cast<float>(alpha_[static_cast<size_t>(a_row(y_row))] * b);
    };
    parallel_rows(context_, count, depth, [&](int64_t i) {
      float* out = inputs.data() + i * depth;
      convert_input(product_.a + a_row(rows[i]) * product_.depth + tile.begin, depth, factor(rows[i]), out);
      if (!norms_.empty()) norms[static_cast<size_t>(i)] = kernels().sum_of_squares(out, depth);
      if (needs_squares) kernels().square(out, depth, squares.data() + i * depth);
    });
    const int64_t offset = matrix * depth * width;
    matmul_.run(context_, inputs.data(), {count, depth}, product_.tile(t, g) + offset, {depth, width}, products.data(),
                {count, width});
    if (needs_squares) {
      matmul_.run(context_, squares.data(), {count, depth}, product_.absolute_tile(t, g) + offset, {depth, width},
                  variances.data(), {count, width});
    }
    std::vector<char> saturated(static_cast<size_t>(count), 0);
    const bool repeat = may_repeat(b);
    parallel_rows(context_, count, 4 * width, [&](int64_t i) {
      saturated[static_cast<size_t>(i)] =
          read_row(t, g, rows[i], attempt, factor(rows[i]), norms[static_cast<size_t>(i)], products.data() + i * width,
                   needs_squares ? variances.data() + i * width : nullptr, repeat);
    });
    for (int64_t i = 0; i < count; ++i) {
      if (saturated[static_cast<size_t>(i)]) again.push_back(rows[i]);
    }
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
  std::vector<float> alpha_;  // of each row of A in the current tile
  std::vector<float> norms_;  // squared, likewise; only for additive constant weight noise
  InputRow input_;
  ReadRow pattern_;
  float weight_noise_ = 0;
  float output_noise_squared_ = 0;
  bool noisy_ = false;
};

}  // namespace

void read_product(const CrossbarProduct& product, const Context& context, const MatMul& matmul) {
  Reader(product, context, matmul).run();
}

}  // namespace emu
