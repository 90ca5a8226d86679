#include "crossbar_matmul.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "periphery.h"

namespace emu {

namespace {

std::atomic<int> g_snapshot_limit{1};

Structure structure_of(const NodeInfo& info, bool dynamic) {
  return parse_structure(
      info.name(), dynamic, [&](const char* attribute) { return info.int_attribute(attribute); },
      [&](const char* attribute) { return info.string_attribute(attribute); });
}

Shape leading(const Shape& shape, size_t trailing) {
  return {shape.begin(), shape.end() - static_cast<long>(trailing)};
}

}  // namespace

void set_snapshot_limit(int limit) { g_snapshot_limit.store(std::max(1, limit)); }

CrossbarMatMul::CrossbarMatMul(const NodeInfo& info) : structure_(structure_of(info, false)), matmul_(info) {
  if (!info.input_is_constant(1)) {
    throw Error("node '" + structure_.node + "', input 'W': it must be a constant of the graph");
  }
}

std::shared_ptr<const CrossbarMatMul::Programmed> CrossbarMatMul::programmed(const Controls& controls,
                                                                             uint32_t read_seed, const float* w,
                                                                             const Context& context) {
  const StoreKey key = store_key(structure_, controls.device, controls.strength, controls.seed, read_seed);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& snapshot : snapshots_) {
      if (snapshot->key == key) return snapshot;
    }
    // Make room before the new copy is made, so that no more copies than the limit are ever alive here.
    while (snapshots_.size() >= static_cast<size_t>(g_snapshot_limit.load())) snapshots_.erase(snapshots_.begin());
  }
  auto fresh = std::make_shared<Programmed>();
  fresh->key = key;
  fresh->values.resize(static_cast<size_t>(rows_ * columns_));
  const bool normalize = structure_.has_periphery();
  const auto groups = normalize ? structure_.column_groups(columns_) : std::vector<Span>{{0, columns_}};
  const ForEach for_each = [&](int64_t count, const std::function<void(int64_t)>& body) {
    context.parallel_for(count, body);
  };
  const auto tiles = structure_.row_tiles(rows_);
  write_values(structure_, key, w, rows_, columns_, tiles, groups, scales_.data(), normalize, nullptr, for_each,
               fresh->values.data());
  if (structure_.weight_noise == WeightNoise::kPcmRead) {
    fresh->magnitudes.resize(fresh->values.size());
    kernels().absolute(fresh->values.data(), static_cast<int64_t>(fresh->values.size()), fresh->magnitudes.data());
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  while (snapshots_.size() >= static_cast<size_t>(g_snapshot_limit.load())) snapshots_.erase(snapshots_.begin());
  snapshots_.push_back(fresh);
  return fresh;
}

void CrossbarMatMul::crossbar_product(const Controls& controls, const Tensor& x, const float* x_values, const Tensor& w,
                                      const Context& context, float* y) {
  Shape y_shape = leading(x.shape, 1);
  y_shape.push_back(columns_);
  const StoreKey key = store_key(structure_, controls.device, controls.strength, controls.seed, controls.read_seed);
  if (!structure_.has_periphery()) {
    const bool as_it_is = stores_exactly(structure_, key);
    const auto weights = as_it_is ? nullptr : programmed(controls, controls.read_seed, w.floats(), context);
    matmul_.run(context, x_values, x.shape, as_it_is ? w.floats() : weights->values.data(), w.shape, y, y_shape);
    return;
  }
  const auto weights = programmed(controls, controls.read_seed, w.floats(), context);
  const SampleMap samples(leading(x.shape, 1), structure_.sample_axis, controls);
  const int64_t rows = product(x.shape, 0, x.shape.size() - 1);
  check_counter_range(structure_, samples, rows, static_cast<uint64_t>((columns_ + 3) / 4));
  CrossbarProduct read;
  read.structure = &structure_;
  read.controls = &controls;
  read.a = x_values;
  read.rows = rows;
  read.depth = rows_;
  read.columns = columns_;
  read.row_tiles = structure_.row_tiles(rows_);
  read.column_groups = structure_.column_groups(columns_);
  const auto block = [&](const std::vector<float>& values, size_t t, size_t g) {
    return values.data() + block_offset(read.row_tiles[t], read.column_groups[g], columns_);
  };
  read.tile = [&](size_t t, size_t g) { return block(weights->values, t, g); };
  read.absolute_tile = [&](size_t t, size_t g) { return block(weights->magnitudes, t, g); };
  read.scales = scales_.data();
  read.samples = &samples;
  read.y = y;
  read_product(read, context, matmul_);
}

void CrossbarMatMul::one_head(const Controls& controls, const Tensor& x, const Tensor& w, const Context& context,
                              const Tensor& y) {
  const int64_t rows = product(x.shape, 0, x.shape.size() - 1);
  Scratch disturbed(rows * columns_);
  if (structure_.head_axis == HeadAxis::kOutput) {
    const int64_t group = columns_ / structure_.head_groups;
    const int64_t width = group / structure_.heads;
    matmul_.run(context, x, w, y);
    crossbar_product(controls, x, x.floats(), w, context, disturbed.data());
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t g = 0; g < structure_.head_groups; ++g) {
        const int64_t begin = row * columns_ + g * group + controls.head * width;
        std::copy(disturbed.data() + begin, disturbed.data() + begin + width, y.mutable_floats() + begin);
      }
    }
    return;
  }
  // The head's inputs through the crossbar, all others exactly.
  const int64_t width = rows_ / structure_.heads;
  Scratch inside(rows * rows_);
  Scratch outside(rows * rows_);
  for (int64_t i = 0; i < rows * rows_; ++i) {
    const bool of_head = (i % rows_) / width == controls.head;
    inside.data()[i] = of_head ? x.floats()[i] : 0.0f;
    outside.data()[i] = of_head ? 0.0f : x.floats()[i];
  }
  matmul_.run(context, outside.data(), x.shape, w.floats(), w.shape, y.mutable_floats(), y.shape);
  crossbar_product(controls, x, inside.data(), w, context, disturbed.data());
  for (int64_t i = 0; i < rows * columns_; ++i) y.mutable_floats()[i] += disturbed.data()[i];
}

void CrossbarMatMul::compute(const Context& context) {
  const Tensor x = context.input(0);
  const Tensor w = context.input(1);
  const Controls controls = read_controls(structure_, context, 2);
  if (x.shape.size() < 2 || w.shape.size() != 2 || x.shape.back() != w.shape[0]) {
    throw Error("node '" + structure_.node + "': X " + to_string(x.shape) + " and W " + to_string(w.shape) +
                " cannot be multiplied; expected [..., K] of rank 2 or more and [K, N]");
  }
  if (structure_.sample_axis == 1 && x.shape.size() < 3) {
    throw Error("node '" + structure_.node + "': X has shape " + to_string(x.shape) +
                "; expected rank 3 or more because attribute 'sample_axis' is 1");
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!weights_checked_) {
      rows_ = w.shape[0];
      columns_ = w.shape[1];
      const int64_t heads_span = structure_.heads * structure_.head_groups;
      if ((structure_.head_axis == HeadAxis::kOutput && columns_ % heads_span != 0) ||
          (structure_.head_axis == HeadAxis::kInput && rows_ % structure_.heads != 0)) {
        throw Error("node '" + structure_.node + "', attribute 'heads': W " + to_string(w.shape) +
                    " does not divide into " + std::to_string(structure_.heads) + " heads");
      }
      if (structure_.row_tiles(rows_).size() > 65536) {
        throw Error("node '" + structure_.node +
                    "', attribute 'tile_rows': more than 65536 row tiles; use larger tiles");
      }
      // A maximum can lose a NaN, a sum cannot.
      if (std::isinf(kernels().largest_magnitude(w.floats(), w.size())) ||
          std::isnan(kernels().sum_of_squares(w.floats(), w.size()))) {
        throw Error("node '" + structure_.node + "', input 'W': it holds an infinite value or a NaN");
      }
      scales_ = weight_scales(structure_, w.floats(), rows_, columns_);
      weights_checked_ = true;
    }
  }
  Shape y_shape = leading(x.shape, 1);
  y_shape.push_back(columns_);
  const Tensor y = context.output(0, y_shape);
  if (product(y_shape) == 0) return;
  if (controls.exact) {
    matmul_.run(context, x, w, y);
  } else if (controls.head >= 0) {
    one_head(controls, x, w, context, y);
  } else {
    const StoreKey key = store_key(structure_, controls.device, controls.strength, controls.seed, controls.read_seed);
    if (!structure_.has_periphery() && stores_exactly(structure_, key)) {
      matmul_.run(context, x, w, y);
    } else {
      crossbar_product(controls, x, x.floats(), w, context, y.mutable_floats());
    }
  }
}

}  // namespace emu
