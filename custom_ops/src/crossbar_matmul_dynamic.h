// emu::CrossbarMatMulDynamic: the product of activations with an operand that is written into the arrays for each
// sample.
#pragma once

#include <vector>

#include "controls.h"
#include "ort.h"
#include "structure.h"

namespace emu {

class CrossbarMatMulDynamic {
 public:
  explicit CrossbarMatMulDynamic(const NodeInfo& info);
  void compute(const Context& context);

  static constexpr Operator kKind = Operator::kDynamic;

 private:
  struct Batch;
  std::vector<char> lost_matrices(const Batch& batch, const SampleMap& samples, const Context& context) const;
  void measure_scales(const Controls& controls, const Batch& batch, const SampleMap& samples,
                      const std::vector<char>& lost, const Context& context, std::vector<float>& scales) const;
  void crossbar_product(const Controls& controls, const Batch& batch, const Context& context, float* y) const;

  Structure structure_;
  MatMul matmul_;
};

}  // namespace emu
