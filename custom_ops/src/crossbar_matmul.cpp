#include "crossbar_matmul.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "periphery.h"

namespace emu {

namespace {

std::atomic<int> g_snapshot_limit{1};

Structure structure_of(const NodeInfo& info, Operator kind) {
  return parse_structure(
      info.name(), kind, [&](const char* attribute) { return info.int_attribute(attribute); },
      [&](const char* attribute) { return info.string_attribute(attribute); });
}

Shape leading(const Shape& shape, size_t trailing) {
  return {shape.begin(), shape.end() - static_cast<long>(trailing)};
}

}  // namespace

void set_snapshot_limit(int limit) { g_snapshot_limit.store(std::max(1, limit)); }

StoredProduct::StoredProduct(const NodeInfo& info, Operator kind)
    : quantized_(kind == Operator::kQuantized), structure_(structure_of(info, kind)) {
  const std::vector<const char*> constants =
      quantized_ ? std::vector<const char*>{"codes", "scale", "zero_point"} : std::vector<const char*>{"W"};
  const size_t faults = 1 + constants.size() + static_cast<size_t>(faults_place(kind));
  if (!info.input_is_constant(faults)) {
    throw Error("node '" + structure_.node + "', input 'faults': it must be a constant of the graph");
  }
  for (size_t i = 0; i < constants.size(); ++i) {
    if (!info.input_is_constant(1 + i)) {
      throw Error("node '" + structure_.node + "', input '" + constants[i] + "': it must be a constant of the graph");
    }
  }
}

std::vector<ElementType> CrossbarMatMul::input_types() {
  return {kFloat, kFloat, kFloat, kFloat, kFloat, kInt64, kInt64, kInt64, kInt64, kInt64};
}

std::vector<ElementType> CrossbarMatMulQuantized::input_types() {
  return {kFloat, kInt8, kFloat, kFloat, kFloat, kFloat, kFloat, kInt64, kInt64, kInt64, kInt64, kInt64};
}

// Numbers of a quantized weight: (code - zero_point) * scale.
StoredProduct::Weights StoredProduct::weights(const Context& context) {
  const Tensor w = context.input(1);
  if (w.shape.size() != 2) {
    throw Error("node '" + structure_.node + "': the weight has shape " + to_string(w.shape) + "; expected [K, N]");
  }
  if (!quantized_) return {w.floats(), w.shape, {}};
  const Tensor scale = context.input(2);
  const Tensor zero_point = context.input(3);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (dequantized_.empty() && w.size() > 0) {
    const int64_t rows = w.shape[0];
    const int64_t columns = w.shape[1];
    const int64_t block = structure_.block_rows;
    const Shape expected = block > 0             ? Shape{(rows + block - 1) / block, columns}
                           : scale.shape.empty() ? Shape{}
                                                 : Shape{columns};
    if (scale.shape != expected || zero_point.shape != expected) {
      throw Error("node '" + structure_.node + "': 'scale' " + to_string(scale.shape) + " and 'zero_point' " +
                  to_string(zero_point.shape) + " do not fit codes " + to_string(w.shape) + "; expected " +
                  to_string(expected));
    }
    const auto* codes = static_cast<const int8_t*>(w.data);
    const int64_t limit = int64_t{1} << (structure_.code_bits - 1);
    dequantized_.resize(static_cast<size_t>(w.size()));
    const int64_t column_step = scale.shape.empty() ? 0 : 1;
    for (int64_t k = 0; k < rows; ++k) {
      const int64_t first = block > 0 ? k / block * columns : 0;
      for (int64_t n = 0; n < columns; ++n) {
        const int64_t code = codes[k * columns + n];
        if (code < -limit || code >= limit) {
          throw Error("node '" + structure_.node + "', input 'codes': " + std::to_string(code) + " needs more than " +
                      std::to_string(structure_.code_bits) + " bits");
        }
        const int64_t i = first + n * column_step;
        dequantized_[static_cast<size_t>(k * columns + n)] =
            (static_cast<float>(code) - zero_point.floats()[i]) * scale.floats()[i];
      }
    }
  }
  ModelCodes own{static_cast<const int8_t*>(w.data),
                 scale.floats(),
                 zero_point.floats(),
                 w.shape[0],
                 w.shape[1],
                 !scale.shape.empty(),
                 structure_.block_rows};
  return {dequantized_.data(), w.shape, own};
}

// Checks the weights, once.
void StoredProduct::prepare(const Weights& w) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (prepared_) return;
  rows_ = w.shape[0];
  columns_ = w.shape[1];
  const int64_t size = rows_ * columns_;
  const int64_t heads_span = structure_.heads * structure_.head_groups;
  if ((structure_.head_axis == HeadAxis::kOutput && columns_ % heads_span != 0) ||
      (structure_.head_axis == HeadAxis::kInput && rows_ % structure_.heads != 0)) {
    throw Error("node '" + structure_.node + "', attribute 'heads': W " + to_string(w.shape) +
                " does not divide into " + std::to_string(structure_.heads) + " heads");
  }
  if (structure_.row_tiles(rows_).size() > 65536) {
    throw Error("node '" + structure_.node + "', attribute 'tile_rows': more than 65536 row tiles; use larger tiles");
  }
  if (!all_finite(w.values, size)) {
    throw Error("node '" + structure_.node + "', input 'W': it holds an infinite value or a NaN");
  }
  prepared_ = true;
}

void StoredProduct::exact_product(const float* x, int64_t rows, const Weights& w, const Context& context, float* y) {
  const Packing* packing = kernels().float_packing;
  std::shared_ptr<const Floats> packed;
  bool room = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (exact_packing_ == packing) packed = exact_;
    room = snapshots_.size() < static_cast<size_t>(g_snapshot_limit.load());
  }
  if (packed == nullptr) {
    const auto fresh = std::make_shared<Floats>(static_cast<size_t>(packing->size(rows_, columns_)));
    const ForEach for_each = [&](int64_t count, const std::function<void(int64_t)>& body) {
      context.parallel_for(count, body);
    };
    pack_matrix(w.values, rows_, columns_, for_each, fresh->data());
    packed = fresh;
  }
  if (room) {  // else a chip needs the memory, and this copy goes when the product is done
    const std::lock_guard<std::mutex> lock(mutex_);
    if (snapshots_.size() < static_cast<size_t>(g_snapshot_limit.load())) {
      exact_ = packed;
      exact_packing_ = packing;
    }
  }
  multiply_rows(context, x, rows, packed->data(), rows_, columns_, y);
}

// For one more chip; the lock is held.
void StoredProduct::make_room() {
  const auto limit = static_cast<size_t>(g_snapshot_limit.load());
  while (snapshots_.size() >= limit) snapshots_.erase(snapshots_.begin());
  if (snapshots_.size() + 1 >= limit) exact_ = nullptr;
}

std::shared_ptr<const StoredArray> StoredProduct::stored(const Controls& controls, const Weights& w,
                                                         const Context& context) {
  const StoreKey key = store_key(structure_, controls.device, controls.strength, controls.seed, controls.read_seed);
  const bool for_reading = structure_.has_periphery();
  const Packing& packing = packing_for(structure_, controls.device, rows_, for_reading);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& snapshot : snapshots_) {
      if (snapshot->key == key && snapshot->packing == &packing) return snapshot;
    }
    // Make room before the new copy is made, so that no more copies than the limit are ever alive here.
    make_room();
  }
  const ForEach for_each = [&](int64_t count, const std::function<void(int64_t)>& body) {
    context.parallel_for(count, body);
  };
  const Matrix matrix{
      w.values, rows_, columns_, quantized_ ? &w.codes : nullptr, controls.faults.ints(), controls.faults.size()};
  const auto fresh =
      std::make_shared<StoredArray>(store_array(structure_, controls.device, key, matrix, for_reading, for_each));
  pack_array(structure_, packing, rows_, columns_, for_reading, for_each, *fresh);
  const std::lock_guard<std::mutex> lock(mutex_);
  make_room();
  snapshots_.push_back(fresh);
  return fresh;
}

void StoredProduct::crossbar_product(const Controls& controls, const Tensor& x, const float* x_values, const Weights& w,
                                     const Context& context, float* y) {
  const int64_t rows = product(x.shape, 0, x.shape.size() - 1);
  if (!structure_.has_periphery()) {
    const bool as_it_is = stores_exactly(structure_, controls.device, controls.strength);
    if (as_it_is) {
      exact_product(x_values, rows, w, context, y);
    } else {
      const auto weights = stored(controls, w, context);
      multiply_rows(context, x_values, rows, weights->slices[0].data(), rows_, columns_, y);
    }
    return;
  }
  const auto weights = stored(controls, w, context);
  const SampleMap samples(leading(x.shape, 1), structure_.sample_axis, controls);
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
  const BlockLayout layout(*weights->packing, read.row_tiles, read.column_groups);
  read.packing = weights->packing;
  read.tile = [&](size_t i, size_t t, size_t g) { return weights->slices[i].data() + layout.offset(t, g); };
  read.noise_tile = [&](size_t i, size_t t, size_t g) {
    return weights->noise_weights[i].data() + layout.offset(t, g);
  };
  read.magnitude_tile = [&](size_t i, size_t t, size_t g) {
    return weights->magnitudes[i].data() + layout.offset(t, g);
  };
  read.decoding = decoding(structure_, controls.device);
  read.unit_columns = &weights->unit_columns;
  read.scales = weights->scales.data();
  read.samples = &samples;
  read.y = y;
  read_product(read, context);
}

void StoredProduct::one_head(const Controls& controls, const Tensor& x, const Weights& w, const Context& context,
                             const Tensor& y) {
  const int64_t rows = product(x.shape, 0, x.shape.size() - 1);
  Scratch disturbed(rows * columns_);
  if (structure_.head_axis == HeadAxis::kOutput) {
    const int64_t group = columns_ / structure_.head_groups;
    const int64_t width = group / structure_.heads;
    exact_product(x.floats(), rows, w, context, y.mutable_floats());
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
  exact_product(outside.data(), rows, w, context, y.mutable_floats());
  crossbar_product(controls, x, inside.data(), w, context, disturbed.data());
  for (int64_t i = 0; i < rows * columns_; ++i) y.mutable_floats()[i] += disturbed.data()[i];
}

void StoredProduct::compute(const Context& context) {
  const Tensor x = context.input(0);
  const Weights w = weights(context);
  const Controls controls = read_controls(structure_, context, quantized_ ? 4 : 2);
  if (x.shape.size() < 2 || x.shape.back() != w.shape[0]) {
    throw Error("node '" + structure_.node + "': X " + to_string(x.shape) + " and W " + to_string(w.shape) +
                " cannot be multiplied; expected [..., K] of rank 2 or more and [K, N]");
  }
  if (structure_.sample_axis == 1 && x.shape.size() < 3) {
    throw Error("node '" + structure_.node + "': X has shape " + to_string(x.shape) +
                "; expected rank 3 or more because attribute 'sample_axis' is 1");
  }
  prepare(w);
  check_samples(structure_, SampleMap(leading(x.shape, 1), structure_.sample_axis, controls));
  Shape y_shape = leading(x.shape, 1);
  y_shape.push_back(columns_);
  const Tensor y = context.output(0, y_shape);
  if (product(y_shape) == 0) return;
  const bool exact = stores_exactly(structure_, controls.device, controls.strength);
  if (controls.exact || (!structure_.has_periphery() && exact)) {
    exact_product(x.floats(), product(x.shape, 0, x.shape.size() - 1), w, context, y.mutable_floats());
  } else if (controls.head >= 0) {
    one_head(controls, x, w, context, y);
    if (structure_.has_periphery()) {
      mark_lost_rows(context, x.floats(), product(leading(x.shape, 1)), rows_, columns_, y.mutable_floats());
    }
  } else {
    crossbar_product(controls, x, x.floats(), w, context, y.mutable_floats());
  }
}

}  // namespace emu
