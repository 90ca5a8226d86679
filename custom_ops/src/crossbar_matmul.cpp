#include "crossbar_matmul.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>

namespace emu {

namespace {

std::atomic<int> g_snapshot_limit{1};

Shape leading(const Shape& shape, size_t trailing) {
  return {shape.begin(), shape.end() - static_cast<long>(trailing)};
}

}  // namespace

void set_snapshot_limit(int limit) { g_snapshot_limit.store(std::max(1, limit)); }

StoredProduct::StoredProduct(const NodeInfo& info, Operator kind)
    : quantized_(kind == Operator::kQuantized), structure_(structure_of(info, kind)) {}

StoredProduct::Weights StoredProduct::weights(const Context& context) {
  const Tensor w = context.input(1);
  const bool two_bytes = quantized_ && structure_.code_bits > 8;
  const size_t of_code = two_bytes ? 1 : 0;  // axes that a code has for itself
  const size_t rank = w.shape.size();
  if ((rank != 2 + of_code && rank != 3 + of_code) || (two_bytes && w.shape.back() != 2)) {
    throw Error("node '" + structure_.node + "': the weight has shape " + to_string(w.shape) + "; expected " +
                (two_bytes ? "[K, N, 2] or [G, K, N, 2], the two bytes of every code" : "[K, N] or [G, K, N]"));
  }
  if (!quantized_) return {w.floats(), w.shape, {}};
  Shape shape = leading(w.shape, of_code);
  const Tensor scale = context.input(2);
  const Tensor zero_point = context.input(3);
  ModelCodes codes;
  codes.bytes = static_cast<const int8_t*>(w.data);
  codes.two_bytes = two_bytes;
  codes.scale = scale.floats();
  codes.zero_point = zero_point.floats();
  codes.matrices = product(shape, 0, shape.size() - 2);
  codes.rows = shape[shape.size() - 2];
  codes.columns = shape.back();
  codes.per_column = !scale.shape.empty();
  codes.block_rows = structure_.block_rows;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (dequantized_.empty() && product(shape) > 0) dequantize(shape, scale, zero_point, codes);
  return {dequantized_.data(), std::move(shape), codes};
}

// Numbers of a quantized weight: (code - zero_point) * scale.
void StoredProduct::dequantize(const Shape& shape, const Tensor& scale, const Tensor& zero_point,
                               const ModelCodes& codes) {
  Shape expected;
  if (structure_.block_rows > 0 || !scale.shape.empty()) expected = leading(shape, 2);
  if (structure_.block_rows > 0) {
    expected.push_back((codes.rows + structure_.block_rows - 1) / structure_.block_rows);
  }
  if (structure_.block_rows > 0 || !scale.shape.empty()) expected.push_back(codes.columns);
  if (scale.shape != expected || zero_point.shape != expected) {
    throw Error("node '" + structure_.node + "': 'scale' " + to_string(scale.shape) + " and 'zero_point' " +
                to_string(zero_point.shape) + " do not fit codes " + to_string(shape) + "; expected " +
                to_string(expected));
  }
  const int64_t limit = int64_t{1} << (structure_.code_bits - 1);
  const int64_t elements = product(shape);
  std::vector<float> values(static_cast<size_t>(elements));
  for (int64_t element = 0; element < elements; ++element) {
    const int64_t code = codes.code(element);
    if (code < -limit || code >= limit) {
      throw Error("node '" + structure_.node + "', input 'codes': " + std::to_string(code) + " needs more than " +
                  std::to_string(structure_.code_bits) + " bits");
    }
    const int64_t i = codes.scale_of(element);
    values[static_cast<size_t>(element)] = (static_cast<float>(code) - codes.zero_point[i]) * codes.scale[i];
  }
  dequantized_ = std::move(values);
}

// Checks the weights, once.
void StoredProduct::prepare(const Weights& w) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (prepared_) return;
  const bool stack = w.shape.size() == 3;
  matrices_ = stack ? w.shape[0] : 1;
  rows_ = w.shape[w.shape.size() - 2];
  columns_ = w.shape.back();
  const bool of_matrices = structure_.head_axis == HeadAxis::kMatrix;
  if (structure_.head_axis != HeadAxis::kNone && of_matrices != stack) {
    throw Error("node '" + structure_.node + "', attribute 'head_axis': W is " + to_string(w.shape) +
                "; expected output, input or none for one matrix [K, N], matrix or none for a stack [G, K, N]");
  }
  const int64_t heads_span = structure_.heads * structure_.head_groups;
  if ((structure_.head_axis == HeadAxis::kOutput && columns_ % heads_span != 0) ||
      (structure_.head_axis == HeadAxis::kInput && rows_ % structure_.heads != 0)) {
    throw Error("node '" + structure_.node + "', attribute 'heads': W " + to_string(w.shape) +
                " does not divide into " + std::to_string(structure_.heads) + " heads");
  }
  structure_.check_row_tiles(rows_);
  structure_.check_range_tiles(matrices_ * static_cast<int64_t>(structure_.row_tiles(rows_).size()), "W");
  if (!all_finite(w.values, matrices_ * rows_ * columns_)) {
    throw Error("node '" + structure_.node + "', input 'W': it holds an infinite value or a NaN");
  }
  prepared_ = true;
}

StoredProduct::Layout StoredProduct::layout(const Tensor& x, const Weights& w) const {
  if (!structure_.window.empty()) return layout_of_images(x, w);
  const std::string where = "node '" + structure_.node + "': X " + to_string(x.shape) + " and W " + to_string(w.shape);
  const size_t rank = x.shape.size();
  if (rank < 2 || x.shape.back() != rows_) {
    throw Error(where + " cannot be multiplied; expected [..., K] of rank 2 or more and [K, N] or [G, K, N]");
  }
  if (structure_.sample_axis == 1 && rank < 3) {
    throw Error("node '" + structure_.node + "': X has shape " + to_string(x.shape) +
                "; expected rank 3 or more because attribute 'sample_axis' is 1");
  }
  Layout result;
  result.product.depth = rows_;
  result.product.columns = columns_;
  result.y_rows = leading(x.shape, 1);
  result.sample_axis = structure_.sample_axis;
  if (matrices_ == 1) {
    result.product.rows = product(result.y_rows);
    if (rank < w.shape.size()) result.y_shape.push_back(1);
  } else if (rank == 2) {  // the same rows for every matrix
    result.product.matrices = matrices_;
    result.product.rows = x.shape[0];
    result.product.a_of.assign(static_cast<size_t>(matrices_), 0);
    result.y_rows = {matrices_, x.shape[0]};
    result.sample_axis += structure_.sample_axis < 0 ? 0 : 1;
  } else {
    int64_t& own = result.y_rows[rank - 3];
    if (own != 1 && own != matrices_) {
      throw Error(where + " cannot be multiplied; expected [..., G, M, K] or [..., 1, M, K] and [G, K, N]");
    }
    if (structure_.sample_axis == static_cast<int64_t>(rank) - 3) {
      throw Error("node '" + structure_.node + "', attribute 'sample_axis' is " +
                  std::to_string(structure_.sample_axis) + ", the axis of the matrices of W in X " +
                  to_string(x.shape) + "; expected another one");
    }
    const bool same = own == 1;
    own = matrices_;
    result.product.matrices = product(result.y_rows, 0, rank - 2);
    result.product.rows = x.shape[rank - 2];
    for (int64_t m = 0; m < result.product.matrices; ++m) {
      result.product.b_of.push_back(m % matrices_);
      if (same) result.product.a_of.push_back(m / matrices_);
    }
  }
  result.y_shape.insert(result.y_shape.end(), result.y_rows.begin(), result.y_rows.end());
  result.y_shape.push_back(columns_);
  return result;
}

StoredProduct::Layout StoredProduct::layout_of_images(const Tensor& x, const Weights& w) const {
  const std::vector<WindowAxis>& window = structure_.window;
  const std::string where = "node '" + structure_.node + "', attribute 'window': ";
  if (x.shape.size() != 2 + window.size()) {
    throw Error(where + "it has " + std::to_string(window.size()) + " axes; expected X of rank " +
                std::to_string(2 + window.size()) + ", [B, channels, sizes], and not " + to_string(x.shape));
  }
  int64_t places = 1;
  for (const WindowAxis& axis : window) places *= axis.size;
  const int64_t channels = rows_ / places;
  if (rows_ % places != 0 || x.shape[1] != matrices_ * channels) {
    throw Error(where + "X " + to_string(x.shape) + " has " + std::to_string(x.shape[1]) + " channels and a window " +
                std::to_string(places) + " places; W " + to_string(w.shape) +
                " fits as many channels in each of G groups as its K divided by these places");
  }
  Layout result;
  result.y_shape = {x.shape[0], matrices_ * columns_};
  for (size_t i = 0; i < window.size(); ++i) {
    const int64_t positions = Patches::positions_along(window[i], x.shape[2 + i]);
    if (positions < 1) {
      throw Error(where + "along axis " + std::to_string(2 + i) + " it does not fit into X " + to_string(x.shape) +
                  " with its padding");
    }
    result.y_shape.push_back(positions);
  }
  result.patches =
      std::make_unique<Patches>(window, std::vector<int64_t>(x.shape.begin() + 2, x.shape.end()), channels);
  result.y_rows = {x.shape[0], matrices_, result.patches->positions()};
  result.sample_axis = structure_.sample_axis;
  Product& product = result.product;
  product.patches = result.patches.get();
  product.matrices = x.shape[0] * matrices_;
  product.rows = result.patches->positions();
  product.depth = rows_;
  product.columns = columns_;
  for (int64_t m = 0; m < product.matrices; ++m) product.b_of.push_back(m % matrices_);
  return result;
}

void StoredProduct::exact_product(const Layout& layout, const float* x, const Weights& w, const Context& context,
                                  float* y) {
  const Packing* packing = &plain_packing(structure_, rows_, columns_);
  std::shared_ptr<const Floats> packed;
  bool room = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (exact_packing_ == packing) packed = exact_;
    room = snapshots_.size() < static_cast<size_t>(g_snapshot_limit.load());
  }
  if (packed == nullptr) {
    const ForEach for_each = [&](int64_t count, const std::function<void(int64_t)>& body) {
      context.parallel_for(count, body);
    };
    packed = std::make_shared<Floats>(pack_whole(*packing, w.values, matrices_, rows_, columns_, for_each));
  }
  if (room) {  // else a chip needs the memory, and this copy goes when the product is done
    const std::lock_guard<std::mutex> lock(mutex_);
    if (snapshots_.size() < static_cast<size_t>(g_snapshot_limit.load())) {
      exact_ = packed;
      exact_packing_ = packing;
    }
  }
  Product product = layout.product;
  product.a = x;
  product.y = y;
  multiply_plain(context, product, *packing, packed->data());
}

// For one more chip; the lock is held.
void StoredProduct::make_room() {
  const auto limit = static_cast<size_t>(g_snapshot_limit.load());
  while (snapshots_.size() >= limit) snapshots_.erase(snapshots_.begin());
  if (snapshots_.size() + 1 >= limit) exact_ = nullptr;
}

std::shared_ptr<const StoredArray> StoredProduct::stored(const Controls& controls, const Weights& w,
                                                         const Context& context) {
  const StoreKey key =
      store_key(structure_, controls.device, controls.strength, controls.seed, controls.read_seed, controls.faults);
  const bool for_reading = structure_.has_periphery();
  const Packing& packing = !for_reading ? plain_packing(structure_, rows_, columns_)
                           : reads_narrow(structure_, controls.device, rows_, columns_)
                               ? column_packing()
                               : packing_for(structure_, controls.device, rows_, for_reading);
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
  const Matrices matrices{w.values, matrices_, rows_, columns_, quantized_ ? &w.codes : nullptr};
  const auto fresh =
      std::make_shared<StoredArray>(store_array(structure_, controls.device, key, matrices, for_reading, for_each));
  pack_array(structure_, packing, matrices_, rows_, columns_, for_reading, for_each, *fresh);
  const std::lock_guard<std::mutex> lock(mutex_);
  make_room();
  snapshots_.push_back(fresh);
  return fresh;
}

void StoredProduct::crossbar_product(const Controls& controls, const Layout& layout, const float* x, const Weights& w,
                                     const Context& context, float* y) {
  if (!structure_.has_periphery() && stores_exactly(structure_, controls.device, controls.strength)) {
    exact_product(layout, x, w, context, y);
    return;
  }
  const auto weights = stored(controls, w, context);
  CrossbarProduct read;
  static_cast<Product&>(read) = layout.product;
  read.a = x;
  read.y = y;
  if (!structure_.has_periphery()) {
    multiply_plain(context, read, *weights->packing, weights->slices[0].data());
    return;
  }
  const SampleMap samples(layout.y_rows, layout.sample_axis, controls, matrices_ > 1);
  check_places(structure_, samples, controls);
  read.structure = &structure_;
  read.controls = &controls;
  read.b_matrices = matrices_;
  read.row_tiles = structure_.row_tiles(rows_);
  read.column_groups = structure_.column_groups(columns_);
  const BlockLayout blocks(*weights->packing, read.row_tiles, read.column_groups, matrices_);
  read.packing = weights->packing;
  read.tile = [&](size_t i, size_t t, size_t g) { return weights->slices[i].data() + blocks.offset(t, g); };
  read.noise_packing = &noise_packing_for(structure_, rows_);
  const BlockLayout noise_blocks(*read.noise_packing, read.row_tiles, read.column_groups, matrices_);
  read.noise_tile = [&](size_t i, size_t t, size_t g) {
    return weights->noise_weights[i].data() + noise_blocks.offset(t, g);
  };
  read.magnitude_tile = [&](size_t i, size_t t, size_t g) {
    return weights->magnitudes[i].data() + blocks.offset(t, g);
  };
  read.decoding = decoding(structure_, controls.device);
  read.unit_columns = &weights->unit_columns;
  read.scales = weights->scales.data();
  read.samples = &samples;
  read_product(read, context);
}

void StoredProduct::one_head(const Controls& controls, const Layout& layout, const Tensor& x, const Weights& w,
                             const Context& context, const Tensor& y) {
  Scratch disturbed(product(layout.y_shape));
  if (structure_.head_axis == HeadAxis::kMatrix) {
    exact_product(layout, x.floats(), w, context, y.mutable_floats());
    crossbar_product(controls, layout, x.floats(), w, context, disturbed.data());
    const int64_t size = layout.product.rows * columns_;
    for (int64_t m = 0; m < layout.product.matrices; ++m) {
      if (layout.product.b_matrix(m) % structure_.heads != controls.head) continue;
      std::copy(disturbed.data() + m * size, disturbed.data() + (m + 1) * size, y.mutable_floats() + m * size);
    }
    return;
  }
  const int64_t rows = layout.product.rows;
  if (structure_.head_axis == HeadAxis::kOutput) {
    const int64_t group = columns_ / structure_.head_groups;
    const int64_t width = group / structure_.heads;
    exact_product(layout, x.floats(), w, context, y.mutable_floats());
    crossbar_product(controls, layout, x.floats(), w, context, disturbed.data());
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t g = 0; g < structure_.head_groups; ++g) {
        const int64_t begin = row * columns_ + g * group + controls.head * width;
        std::copy(disturbed.data() + begin, disturbed.data() + begin + width, y.mutable_floats() + begin);
      }
    }
  } else {
    // The head's inputs through the crossbar, all others exactly.
    const int64_t width = rows_ / structure_.heads;
    Scratch inside(rows * rows_);
    Scratch outside(rows * rows_);
    for (int64_t i = 0; i < rows * rows_; ++i) {
      const bool of_head = (i % rows_) / width == controls.head;
      inside.data()[i] = of_head ? x.floats()[i] : 0.0f;
      outside.data()[i] = of_head ? 0.0f : x.floats()[i];
    }
    exact_product(layout, outside.data(), w, context, y.mutable_floats());
    crossbar_product(controls, layout, inside.data(), w, context, disturbed.data());
    for (int64_t i = 0; i < rows * columns_; ++i) y.mutable_floats()[i] += disturbed.data()[i];
  }
  if (structure_.has_periphery()) mark_lost_rows(context, x.floats(), rows, rows_, columns_, y.mutable_floats());
}

void StoredProduct::compute(const Context& context) {
  const Tensor x = context.input(0);
  const Weights w = weights(context);
  const Controls controls = read_controls(structure_, context);
  prepare(w);
  const Layout layout = this->layout(x, w);
  check_samples(structure_, SampleMap(layout.y_rows, layout.sample_axis, controls));
  const Tensor y = context.output(0, layout.y_shape);
  if (y.size() == 0) return;
  const bool exact = stores_exactly(structure_, controls.device, controls.strength);
  if (controls.exact || (!structure_.has_periphery() && exact)) {
    exact_product(layout, x.floats(), w, context, y.mutable_floats());
  } else if (controls.head >= 0) {
    one_head(controls, layout, x, w, context, y);
  } else {
    crossbar_product(controls, layout, x.floats(), w, context, y.mutable_floats());
  }
}

}  // namespace emu
