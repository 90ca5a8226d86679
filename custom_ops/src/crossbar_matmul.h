// emu::CrossbarMatMul: the product of activations with stored weights.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "controls.h"
#include "ort.h"
#include "stored_values.h"
#include "structure.h"

namespace emu {

class CrossbarMatMul {
 public:
  explicit CrossbarMatMul(const NodeInfo& info);
  void compute(const Context& context);

  static const char* op_name() { return "CrossbarMatMul"; }

 private:
  // Weights as the arrays hold them; immutable once published, shared by all runs that use the same chip.
  struct Programmed {
    StoreKey key;
    std::vector<float> values;
    std::vector<float> magnitudes;  // |values|, only where weight noise needs them
  };

  std::shared_ptr<const Programmed> programmed(const Controls& controls, uint32_t read_seed, const float* w,
                                               const Context& context);
  void crossbar_product(const Controls& controls, const Tensor& x, const float* x_values, const Tensor& w,
                        const Context& context, float* y);
  void one_head(const Controls& controls, const Tensor& x, const Tensor& w, const Context& context, const Tensor& y);

  Structure structure_;
  MatMul matmul_;
  std::mutex mutex_;
  bool weights_checked_ = false;
  int64_t rows_ = 0;
  int64_t columns_ = 0;
  std::vector<float> scales_;
  std::vector<std::shared_ptr<const Programmed>> snapshots_;  // newest last
};

// How many programmed copies of each weight are kept (the newest); at least 1. Memory against re-programming.
void set_snapshot_limit(int limit);

}  // namespace emu
