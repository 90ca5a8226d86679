#include "ort.h"

#include <atomic>
#include <exception>
#include <memory>
#include <mutex>

namespace emu {

namespace {

std::atomic<const OrtApi*> g_api{nullptr};

// Reads a string that onnxruntime returns in two calls, the first for its size.
template <typename Call>
std::string read_string(Call&& call) {
  size_t size = 0;
  throw_on_error(call(nullptr, &size));
  std::string text(size, '\0');
  throw_on_error(call(text.data(), &size));
  while (!text.empty() && text.back() == '\0') text.pop_back();
  return text;
}

Tensor describe(const OrtValue* const_value) {
  auto* value = const_cast<OrtValue*>(const_value);
  Tensor tensor;
  tensor.value = value;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  throw_on_error(call_status(Slot::GetTensorTypeAndShape, static_cast<const OrtValue*>(value), &info));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> owner(
      info, [](OrtTensorTypeAndShapeInfo* released) { call_void(Slot::ReleaseTensorTypeAndShapeInfo, released); });
  size_t rank = 0;
  const auto* const_info = static_cast<const OrtTensorTypeAndShapeInfo*>(info);
  throw_on_error(call_status(Slot::GetDimensionsCount, const_info, &rank));
  tensor.shape.resize(rank);
  throw_on_error(call_status(Slot::GetDimensions, const_info, tensor.shape.data(), rank));
  throw_on_error(call_status(Slot::GetTensorElementType, const_info, &tensor.element_type));
  throw_on_error(call_status(Slot::GetTensorMutableData, value, &tensor.data));
  return tensor;
}

}  // namespace

int64_t product(const Shape& shape, size_t first, size_t last) {
  int64_t size = 1;
  for (size_t i = first; i < last; ++i) size *= shape[i];
  return size;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void set_api(const OrtApi* api) { g_api.store(api); }
const OrtApi* api() { return g_api.load(); }

void throw_on_error(OrtStatus* status) {
  if (status == nullptr) return;
  using Message = const char*(EMU_ORT_CALL*)(const OrtStatus*);
  const auto* table = reinterpret_cast<void* const*>(api());
  const std::string message = reinterpret_cast<Message>(table[static_cast<size_t>(Slot::GetErrorMessage)])(status);
  call_void(Slot::ReleaseStatus, status);
  throw Error("onnxruntime reports: " + message, kRuntimeException);
}

OrtStatus* make_status(ErrorCode code, const char* message) {
  return call_status(Slot::CreateStatus, static_cast<int>(code), message);
}

std::string NodeInfo::name() const {
  return read_string(
      [this](char* out, size_t* size) { return call_status(Slot::KernelInfo_GetNodeName, info_, out, size); });
}

int64_t NodeInfo::int_attribute(const char* attribute, std::optional<int64_t> absent) const {
  int64_t value = 0;
  if (read_attribute(attribute, value)) return value;
  std::string text;
  if (read_attribute(attribute, text)) refuse(attribute, "'" + text + "', expected an integer.");
  if (absent) return *absent;
  refuse(attribute, "missing; every attribute must be present.");
}

std::string NodeInfo::string_attribute(const char* attribute, bool may_be_absent) const {
  std::string text;
  if (read_attribute(attribute, text)) return text;
  int64_t number = 0;
  if (read_attribute(attribute, number)) refuse(attribute, std::to_string(number) + ", expected a string.");
  if (may_be_absent) return {};
  refuse(attribute, "missing; every attribute must be present.");
}

// False where there is no such attribute of this type.
bool NodeInfo::read_attribute(const char* attribute, int64_t& value) const {
  OrtStatus* status = call_status(Slot::KernelInfoGetAttribute_int64, info_, attribute, &value);
  if (status != nullptr) call_void(Slot::ReleaseStatus, status);
  return status == nullptr;
}

bool NodeInfo::read_attribute(const char* attribute, std::string& value) const {
  size_t size = 0;
  OrtStatus* status =
      call_status(Slot::KernelInfoGetAttribute_string, info_, attribute, static_cast<char*>(nullptr), &size);
  if (status != nullptr) {
    call_void(Slot::ReleaseStatus, status);
    return false;
  }
  value = read_string([&](char* out, size_t* length) {
    return call_status(Slot::KernelInfoGetAttribute_string, info_, attribute, out, length);
  });
  return true;
}

void NodeInfo::refuse(const char* attribute, const std::string& what) const {
  throw Error("node '" + name() + "', attribute '" + attribute + "' is " + what);
}

bool NodeInfo::input_is_constant(size_t index) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  throw_on_error(call_status(Slot::KernelInfoGetConstantInput_tensor, info_, index, &is_constant, &value));
  return is_constant != 0;
}

Tensor Context::input(size_t index) const {
  const OrtValue* value = nullptr;
  throw_on_error(
      call_status(Slot::KernelContext_GetInput, static_cast<const OrtKernelContext*>(context_), index, &value));
  return describe(value);
}

Tensor Context::output(size_t index, const Shape& shape) const {
  OrtValue* value = nullptr;
  throw_on_error(call_status(Slot::KernelContext_GetOutput, context_, index, shape.data(), shape.size(), &value));
  Tensor tensor;
  tensor.value = value;
  tensor.shape = shape;
  tensor.element_type = kFloat;
  throw_on_error(call_status(Slot::GetTensorMutableData, value, &tensor.data));
  return tensor;
}

void Context::parallel_for(int64_t count, const std::function<void(int64_t)>& body) const {
  if (count <= 0) return;
  if (count == 1) {
    body(0);
    return;
  }
  struct Work {
    const std::function<void(int64_t)>* body;
    std::mutex mutex;
    std::exception_ptr failure;
  } work{&body, {}, nullptr};
  using Task = void (*)(void*, size_t);
  const Task task = [](void* user, size_t index) {
    auto* shared = static_cast<Work*>(user);
    try {
      (*shared->body)(static_cast<int64_t>(index));
    } catch (...) {
      const std::lock_guard<std::mutex> lock(shared->mutex);
      if (!shared->failure) shared->failure = std::current_exception();
    }
  };
  throw_on_error(call_status(Slot::KernelContext_ParallelFor, static_cast<const OrtKernelContext*>(context_), task,
                             static_cast<size_t>(count), size_t{0}, static_cast<void*>(&work)));
  if (work.failure) std::rethrow_exception(work.failure);
}

MatMul::MatMul(const NodeInfo& info) {
  const char* type_name = "T";
  const int type = kFloat;
  throw_on_error(call_status(Slot::CreateOp, info.handle(), "MatMul", "", 13, &type_name, &type, 1,
                             static_cast<const OrtOpAttr* const*>(nullptr), 0, 2, 1, &op_));
  throw_on_error(call_status(Slot::CreateCpuMemoryInfo, 1, 0, &memory_));
}

MatMul::~MatMul() {
  if (op_ != nullptr) call_void(Slot::ReleaseOp, op_);
  if (memory_ != nullptr) call_void(Slot::ReleaseMemoryInfo, memory_);
}

void MatMul::run(const Context& context, const Tensor& a, const Tensor& b, const Tensor& y) const {
  const OrtValue* inputs[2] = {a.value, b.value};
  OrtValue* outputs[1] = {y.value};
  throw_on_error(call_status(Slot::InvokeOp, static_cast<const OrtKernelContext*>(context.handle()),
                             static_cast<const OrtOp*>(op_), static_cast<const OrtValue* const*>(inputs), 2,
                             static_cast<OrtValue* const*>(outputs), 1));
}

void MatMul::run(const Context& context, const float* a, const Shape& a_shape, const float* b, const Shape& b_shape,
                 float* y, const Shape& y_shape) const {
  struct Value {
    OrtValue* value = nullptr;
    ~Value() {
      if (value != nullptr) call_void(Slot::ReleaseValue, value);
    }
  } values[3];
  const float* data[3] = {a, b, y};
  const Shape* shapes[3] = {&a_shape, &b_shape, &y_shape};
  for (int i = 0; i < 3; ++i) {
    throw_on_error(call_status(Slot::CreateTensorWithDataAsOrtValue, static_cast<const OrtMemoryInfo*>(memory_),
                               const_cast<void*>(static_cast<const void*>(data[i])),
                               static_cast<size_t>(product(*shapes[i])) * sizeof(float), shapes[i]->data(),
                               shapes[i]->size(), static_cast<int>(kFloat), &values[i].value));
  }
  Tensor tensors[3];
  for (int i = 0; i < 3; ++i) tensors[i].value = values[i].value;
  run(context, tensors[0], tensors[1], tensors[2]);
}

}  // namespace emu
