#include "faulty_weight.h"

#include <algorithm>
#include <utility>

namespace emu {

FaultyWeight::FaultyWeight(const NodeInfo& info) : structure_(structure_of(info, kKind)) {}

// Once, as W is a constant.
void FaultyWeight::check(const Tensor& w) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (checked_) return;
  if (!all_finite(w.floats(), w.size())) {
    throw Error("node '" + structure_.node + "', input 'W': it holds an infinite value or a NaN");
  }
  checked_ = true;
}

std::shared_ptr<const StoredArray> FaultyWeight::stored(const Controls& controls, const Tensor& w,
                                                        const Context& context) {
  const StoreKey key =
      store_key(structure_, controls.device, controls.strength, controls.seed, controls.read_seed, controls.faults);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (newest_ != nullptr && newest_->key == key) return newest_;
  }
  const int64_t columns = w.shape.back();
  const int64_t rows = w.size() / columns;
  const ForEach for_each = [&](int64_t count, const std::function<void(int64_t)>& body) {
    context.parallel_for(count, body);
  };
  const Matrices matrix{w.floats(), 1, rows, columns};
  const auto fresh =
      std::make_shared<const StoredArray>(store_array(structure_, controls.device, key, matrix, false, for_each));
  const std::lock_guard<std::mutex> lock(mutex_);
  newest_ = fresh;
  return fresh;
}

void FaultyWeight::compute(const Context& context) {
  const Tensor w = context.input(0);
  const Controls controls = read_controls(structure_, context);
  if (w.shape.empty()) {
    throw Error("node '" + structure_.node + "', input 'W': it is a scalar; expected rank 1 or more");
  }
  check(w);
  const Tensor y = context.output(0, w.shape);
  if (w.size() == 0) return;
  if (controls.exact || stores_exactly(structure_, controls.device, controls.strength)) {
    std::copy(w.floats(), w.floats() + w.size(), y.mutable_floats());
    return;
  }
  const auto held = stored(controls, w, context);
  std::copy(held->slices[0].begin(), held->slices[0].end(), y.mutable_floats());
}

}  // namespace emu
