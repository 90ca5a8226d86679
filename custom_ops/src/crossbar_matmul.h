// emu::CrossbarMatMul and emu::CrossbarMatMulQuantized: the product of activations with stored weights, given as
// numbers or as the integer codes, scales and zero points of a quantized model.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "controls.h"
#include "ort.h"
#include "periphery.h"
#include "stored_values.h"
#include "structure.h"

namespace emu {

class StoredProduct {
 public:
  void compute(const Context& context);

 protected:
  StoredProduct(const NodeInfo& info, Operator kind);

 private:
  // W [matrices, rows, columns]
  struct Weights {
    const float* values = nullptr;
    Shape shape;
    ModelCodes codes;  // quantized only
  };
  // How X meets W, and which rows of Y belong to which sample.
  struct Layout {
    Product product;  // but for a and y, which change with what is multiplied
    std::unique_ptr<Patches> patches;
    Shape y_shape;
    Shape y_rows;             // leading dimensions of Y, as rows count
    int64_t sample_axis = 0;  // of y_rows
  };

  Weights weights(const Context& context);
  void dequantize(const Shape& shape, const Tensor& scale, const Tensor& zero_point, const ModelCodes& codes);
  void prepare(const Weights& w);
  Layout layout(const Tensor& x, const Weights& w) const;
  Layout layout_of_images(const Tensor& x, const Weights& w) const;
  // The clean product, to the bit as onnxruntime makes it from weights that it packed.
  void exact_product(const Layout& layout, const float* x, const Weights& w, const Context& context, float* y);
  void make_room();
  // The arrays of one chip: made once, shared by all runs that use the same chip.
  std::shared_ptr<const StoredArray> stored(const Controls& controls, const Weights& w, const Context& context);
  void crossbar_product(const Controls& controls, const Layout& layout, const float* x, const Weights& w,
                        const Context& context, float* y);
  void one_head(const Controls& controls, const Layout& layout, const Tensor& x, const Weights& w,
                const Context& context, const Tensor& y);

  bool quantized_;
  Structure structure_;
  std::mutex mutex_;
  bool prepared_ = false;
  std::vector<float> dequantized_;
  int64_t matrices_ = 1;
  int64_t rows_ = 0;
  int64_t columns_ = 0;
  std::vector<std::shared_ptr<const StoredArray>> snapshots_;  // newest last
  std::shared_ptr<const Floats> exact_;                        // W, packed, as long as no chip needs its place
  const Packing* exact_packing_ = nullptr;
};

class CrossbarMatMul : public StoredProduct {
 public:
  static constexpr Operator kKind = Operator::kStored;
  explicit CrossbarMatMul(const NodeInfo& info) : StoredProduct(info, kKind) {}
};

class CrossbarMatMulQuantized : public StoredProduct {
 public:
  static constexpr Operator kKind = Operator::kQuantized;
  explicit CrossbarMatMulQuantized(const NodeInfo& info) : StoredProduct(info, kKind) {}
};

// How many programmed copies of each weight are kept (the newest); at least 1. Memory against re-programming.
void set_snapshot_limit(int limit);

}  // namespace emu
