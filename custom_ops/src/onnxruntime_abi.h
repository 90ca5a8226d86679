// The slice of onnxruntime's C interface that this library uses, declared by slot.
//
// The onnxruntime wheel ships no headers, but its function table is a stable ABI that only grows at the end: a slot,
// once published, does not move. Declaring the few entries we need lets one binary load on every onnxruntime from
// 1.19 on, without a build dependency. Slots are those of the official C header, API version 17.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define EMU_ORT_CALL __stdcall
#define EMU_EXPORT __declspec(dllexport)
#else
#define EMU_ORT_CALL
#define EMU_EXPORT __attribute__((visibility("default")))
#endif

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtMemoryInfo;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtOp;
struct OrtOpAttr;
struct OrtShapeInferContext;
struct OrtApi;

struct OrtApiBase {
  const OrtApi*(EMU_ORT_CALL* GetApi)(uint32_t version);
  const char*(EMU_ORT_CALL* GetVersionString)();
};

namespace emu {

constexpr uint32_t kApiVersion = 17;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2, kRuntimeException = 6 };
enum ElementType : int { kFloat = 1, kInt8 = 3, kInt64 = 7 };

// Position of each function in OrtApi, seen as an array of pointers.
enum class Slot : size_t {
  CreateStatus = 0,
  GetErrorCode = 1,
  GetErrorMessage = 2,
  CreateCustomOpDomain = 26,
  CustomOpDomain_Add = 27,
  AddCustomOpDomain = 28,
  CreateTensorWithDataAsOrtValue = 49,
  GetTensorMutableData = 51,
  GetTensorElementType = 60,
  GetDimensionsCount = 61,
  GetDimensions = 62,
  GetTensorTypeAndShape = 65,
  CreateCpuMemoryInfo = 69,
  KernelInfoGetAttribute_int64 = 86,
  KernelInfoGetAttribute_string = 87,
  KernelContext_GetInput = 90,
  KernelContext_GetOutput = 91,
  ReleaseStatus = 93,
  ReleaseMemoryInfo = 94,
  ReleaseValue = 96,
  ReleaseTensorTypeAndShapeInfo = 99,
  ReleaseCustomOpDomain = 101,
  CreateOp = 213,
  InvokeOp = 214,
  ReleaseOp = 215,
  KernelInfo_GetNodeName = 244,
  KernelInfoGetConstantInput_tensor = 249,
  KernelContext_ParallelFor = 274,
};

}  // namespace emu

// The table of callbacks by which onnxruntime drives a custom op, as of API version 17 (the version 18 hooks stay
// null).
struct OrtCustomOp {
  uint32_t version;
  void*(EMU_ORT_CALL* CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char*(EMU_ORT_CALL* GetName)(const OrtCustomOp*);
  const char*(EMU_ORT_CALL* GetExecutionProviderType)(const OrtCustomOp*);
  int(EMU_ORT_CALL* GetInputType)(const OrtCustomOp*, size_t);
  size_t(EMU_ORT_CALL* GetInputTypeCount)(const OrtCustomOp*);
  int(EMU_ORT_CALL* GetOutputType)(const OrtCustomOp*, size_t);
  size_t(EMU_ORT_CALL* GetOutputTypeCount)(const OrtCustomOp*);
  void(EMU_ORT_CALL* KernelCompute)(void*, OrtKernelContext*);
  void(EMU_ORT_CALL* KernelDestroy)(void*);
  int(EMU_ORT_CALL* GetInputCharacteristic)(const OrtCustomOp*, size_t);
  int(EMU_ORT_CALL* GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int(EMU_ORT_CALL* GetInputMemoryType)(const OrtCustomOp*, size_t);
  int(EMU_ORT_CALL* GetVariadicInputMinArity)(const OrtCustomOp*);
  int(EMU_ORT_CALL* GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int(EMU_ORT_CALL* GetVariadicOutputMinArity)(const OrtCustomOp*);
  int(EMU_ORT_CALL* GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus*(EMU_ORT_CALL* CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus*(EMU_ORT_CALL* KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus*(EMU_ORT_CALL* InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int(EMU_ORT_CALL* GetStartVersion)(const OrtCustomOp*);
  int(EMU_ORT_CALL* GetEndVersion)(const OrtCustomOp*);
  size_t(EMU_ORT_CALL* GetMayInplace)(int**, int**);
  void(EMU_ORT_CALL* ReleaseMayInplace)(int*, int*);
  size_t(EMU_ORT_CALL* GetAliasMap)(int**, int**);
  void(EMU_ORT_CALL* ReleaseAliasMap)(int*, int*);
};
