// emu::FaultyWeight: what an array holds for a stored tensor that feeds no product.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "controls.h"
#include "ort.h"
#include "stored_values.h"
#include "structure.h"

namespace emu {

class FaultyWeight {
 public:
  explicit FaultyWeight(const NodeInfo& info);
  void compute(const Context& context);

  static constexpr Operator kKind = Operator::kFaultyWeight;

 private:
  void check(const Tensor& w);
  std::shared_ptr<const StoredArray> stored(const Controls& controls, const Tensor& w, const Context& context);

  Structure structure_;
  std::mutex mutex_;
  bool checked_ = false;
  std::shared_ptr<const StoredArray> newest_;
};

}  // namespace emu
