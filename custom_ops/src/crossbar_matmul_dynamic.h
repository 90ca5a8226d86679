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
  struct Part;
  class Writer;
  Part part_of(const Batch& batch, const Controls& controls, int64_t sample) const;
  void crossbar_product(const Controls& controls, const Batch& batch, const Context& context, float* y) const;
  void multiply_written(const Writer& writer, const Batch& batch, const Context& context, float* y,
                        const Shape& y_shape) const;
  void read_matrices(const Controls& controls, const Writer& writer, const SampleMap& samples, const Batch& batch,
                     int64_t begin, int64_t end, const Context& context, float* y) const;

  Structure structure_;
  MatMul matmul_;
};

}  // namespace emu
