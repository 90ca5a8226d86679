// Thin C++ over the C slice: errors become exceptions inside the library (they never cross the ABI), handles are
// released by scope.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "onnxruntime_abi.h"

namespace emu {

// An error meant for the user: one sentence. Turned into an OrtStatus at the ABI boundary.
struct Error : std::runtime_error {
  explicit Error(const std::string& sentence, ErrorCode error_code = kInvalidArgument)
      : std::runtime_error("emu: " + sentence), code(error_code) {}
  ErrorCode code;
};

using Shape = std::vector<int64_t>;

int64_t product(const Shape& shape, size_t first, size_t last);
inline int64_t product(const Shape& shape) { return product(shape, 0, shape.size()); }
std::string to_string(const Shape& shape);

// Remembers the process's function table; called once by RegisterCustomOps.
void set_api(const OrtApi* api);
const OrtApi* api();

// Calls the function in a slot. The signature is the caller's, checked against onnxruntime_abi.h by eye: keep each
// function's only call here or in ort.cpp.
template <typename... Arguments>
OrtStatus* call_status(Slot slot, Arguments... arguments) {
  using Function = OrtStatus*(EMU_ORT_CALL*)(Arguments...);
  const auto* table = reinterpret_cast<void* const*>(api());
  return reinterpret_cast<Function>(table[static_cast<size_t>(slot)])(arguments...);
}

template <typename... Arguments>
void call_void(Slot slot, Arguments... arguments) {
  using Function = void(EMU_ORT_CALL*)(Arguments...);
  const auto* table = reinterpret_cast<void* const*>(api());
  reinterpret_cast<Function>(table[static_cast<size_t>(slot)])(arguments...);
}

void throw_on_error(OrtStatus* status);
OrtStatus* make_status(ErrorCode code, const char* message);

// Attributes, name and constant inputs of the node for which a kernel is made.
class NodeInfo {
 public:
  explicit NodeInfo(const OrtKernelInfo* info) : info_(info) {}
  std::string name() const;
  // The second where there is no such attribute and it may be absent.
  int64_t int_attribute(const char* attribute, std::optional<int64_t> absent = {}) const;
  // Empty where the attribute may be absent and is.
  std::string string_attribute(const char* attribute, bool may_be_absent = false) const;
  bool input_is_constant(size_t index) const;
  const OrtKernelInfo* handle() const { return info_; }

 private:
  bool read_attribute(const char* attribute, int64_t& value) const;
  bool read_attribute(const char* attribute, std::string& value) const;
  [[noreturn]] void refuse(const char* attribute, const std::string& what) const;

  const OrtKernelInfo* info_;
};

// A view of an input or output tensor. Does not own it.
struct Tensor {
  OrtValue* value = nullptr;
  Shape shape;
  int element_type = 0;
  void* data = nullptr;

  const float* floats() const { return static_cast<const float*>(data); }
  float* mutable_floats() const { return static_cast<float*>(data); }
  const int64_t* ints() const { return static_cast<const int64_t*>(data); }
  int64_t size() const { return product(shape); }
};

class Context {
 public:
  explicit Context(OrtKernelContext* context) : context_(context) {}
  Tensor input(size_t index) const;
  Tensor output(size_t index, const Shape& shape) const;
  OrtKernelContext* handle() const { return context_; }

  // Runs body(i) for i in [0, count) on onnxruntime's own thread pool. The first exception is rethrown here.
  void parallel_for(int64_t count, const std::function<void(int64_t)>& body) const;

 private:
  OrtKernelContext* context_;
};

// onnxruntime's own MatMul (float32), callable from inside a kernel.
class MatMul {
 public:
  explicit MatMul(const NodeInfo& info);
  ~MatMul();
  MatMul(const MatMul&) = delete;
  MatMul& operator=(const MatMul&) = delete;

  void run(const Context& context, const Tensor& a, const Tensor& b, const Tensor& y) const;
  void run(const Context& context, const float* a, const Shape& a_shape, const float* b, const Shape& b_shape, float* y,
           const Shape& y_shape) const;

 private:
  OrtOp* op_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
};

}  // namespace emu
