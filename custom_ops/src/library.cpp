// The library's door: the custom-op domain for onnxruntime, and a few plain C functions for Python's ctypes.
#include <algorithm>
#include <cstring>
#include <string>

#include "crossbar_matmul.h"
#include "crossbar_matmul_dynamic.h"
#include "faulty_weight.h"
#include "functions.h"
#include "given_node.h"
#include "kernels.h"
#include "ort.h"

namespace emu {

namespace {

// Runs body; an exception becomes a status, because none may cross the C interface.
template <typename Body>
OrtStatus* guarded(Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Error& error) {
    return make_status(error.code, error.what());
  } catch (const std::bad_alloc&) {
    return make_status(kRuntimeException, "emu: not enough memory");
  } catch (const std::exception& error) {
    return make_status(kRuntimeException, (std::string("emu: ") + error.what()).c_str());
  } catch (...) {
    return make_status(kRuntimeException, "emu: unknown failure");
  }
}

template <typename Kernel>
const OrtCustomOp* custom_op() {
  static const OrtCustomOp op = [] {
    OrtCustomOp entry{};
    entry.version = kApiVersion;
    entry.GetName = [](const OrtCustomOp*) { return operator_row(Kernel::kKind).name; };
    entry.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return "CPUExecutionProvider"; };
    entry.GetInputTypeCount = [](const OrtCustomOp*) { return operator_row(Kernel::kKind).inputs.size(); };
    entry.GetInputType = [](const OrtCustomOp*, size_t index) -> int {
      return operator_row(Kernel::kKind).inputs[index].type;
    };
    entry.GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
    entry.GetOutputType = [](const OrtCustomOp*, size_t) -> int { return kFloat; };
    entry.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return 0; };
    entry.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return 0; };
    entry.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
    entry.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
    entry.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
    entry.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
    entry.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
    entry.GetStartVersion = [](const OrtCustomOp*) { return 1; };
    entry.GetEndVersion = [](const OrtCustomOp*) { return 1; };
    entry.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info,
                              void** kernel) -> OrtStatus* {
      return guarded([&] { *kernel = new Kernel(NodeInfo(info)); });
    };
    entry.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatus* {
      return guarded([&] { static_cast<Kernel*>(kernel)->compute(Context(context)); });
    };
    entry.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    return entry;
  }();
  return &op;
}

Structure structure_of(const GivenNode& node) {
  const auto find = [&](const char* name, bool is_text) -> const GivenAttribute* {
    const GivenAttribute* const end = node.attributes + node.attribute_count;
    const auto* found = std::find_if(node.attributes, end,
                                     [&](const GivenAttribute& each) { return std::strcmp(each.name, name) == 0; });
    if (found != end && (found->text != nullptr) == is_text) return found;
    if (found == end && may_be_absent(name)) return nullptr;
    throw Error("node 'program', attribute '" + std::string(name) + "' is " +
                (found == end ? "missing; every attribute must be present."
                 : is_text    ? std::to_string(found->number) + ", expected a string."
                              : "'" + std::string(found->text) + "', expected an integer."));
  };
  return parse_structure(
      "program", node.codes != nullptr ? Operator::kQuantized : Operator::kStored,
      [&](const char* name) {
        const GivenAttribute* found = find(name, false);
        return found == nullptr ? *number_if_absent(name) : found->number;
      },
      [&](const char* name) {
        const GivenAttribute* found = find(name, true);
        return found == nullptr ? std::string() : std::string(found->text);
      });
}

thread_local std::string g_last_error;

template <typename Body>
int guarded_code(Body&& body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    g_last_error = error.what();
  } catch (...) {
    g_last_error = "emu: unknown failure";
  }
  return 1;
}

// What the arrays of one chip hold, not packed.
StoredArray stored_for(const GivenNode& node, bool for_reading) {
  const Structure structure = structure_of(node);
  const Device numbers = structure.device(node.device, node.entries);
  const StoreKey key = store_key(structure, numbers, node.strength, node.seed, node.read_seed,
                                 own_faults(structure, node.faults, node.fault_count));
  Matrices w{node.w, node.matrices, node.rows, node.columns};
  ModelCodes codes;
  if (node.codes != nullptr) {
    codes.bytes = node.codes;
    codes.two_bytes = structure.code_bits > 8;
    codes.scale = node.scale;
    codes.zero_point = node.zero_point;
    codes.matrices = w.count;
    codes.rows = w.rows;
    codes.columns = w.columns;
    codes.per_column = node.scales > 1;
    codes.block_rows = structure.block_rows;
    w.codes = &codes;
  }
  if (!all_finite(w.values, w.count * w.rows * w.columns)) throw Error("the weight holds an infinite value or a NaN");
  const ForEach serial = [](int64_t count, const std::function<void(int64_t)>& body) {
    for (int64_t i = 0; i < count; ++i) body(i);
  };
  return store_array(structure, numbers, key, w, for_reading, serial);
}

Counter counter_of(const uint32_t key[2], const uint32_t counter[4]) {
  Counter result;
  result.key0 = key[0];
  result.key1 = key[1];
  result.block = counter[0];
  result.c1 = counter[1];
  result.c2 = counter[2];
  result.c3 = counter[3];
  return result;
}

}  // namespace

}  // namespace emu

extern "C" {

EMU_EXPORT OrtStatus* EMU_ORT_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(emu::kApiVersion);
  if (api == nullptr) {
    // Version 1 exists everywhere and can carry the message.
    emu::set_api(base->GetApi(1));
    const std::string message =
        std::string("emu: onnxruntime ") + base->GetVersionString() + " is too old; install onnxruntime 1.19 or newer";
    return emu::make_status(emu::kFail, message.c_str());
  }
  emu::set_api(api);
  return emu::guarded([&] {
    // Sessions keep pointers to the domain, so it lives as long as the process.
    static OrtCustomOpDomain* const domain = [] {
      OrtCustomOpDomain* created = nullptr;
      emu::throw_on_error(emu::call_status(emu::Slot::CreateCustomOpDomain, "emu", &created));
      for (const OrtCustomOp* op :
           {emu::custom_op<emu::CrossbarMatMul>(), emu::custom_op<emu::CrossbarMatMulQuantized>(),
            emu::custom_op<emu::CrossbarMatMulDynamic>(), emu::custom_op<emu::FaultyWeight>()}) {
        emu::throw_on_error(emu::call_status(emu::Slot::CustomOpDomain_Add, created, op));
      }
      return created;
    }();
    emu::throw_on_error(emu::call_status(emu::Slot::AddCustomOpDomain, options, domain));
  });
}

EMU_EXPORT const char* emu_version() { return EMU_VERSION; }
EMU_EXPORT const char* emu_last_error() { return emu::g_last_error.c_str(); }
EMU_EXPORT const char* emu_instruction_set() { return emu::kernels().name; }
EMU_EXPORT int emu_use_instruction_set(const char* name) { return emu::use_kernels(name) ? 0 : 1; }
EMU_EXPORT void emu_keep_programmed(int copies) { emu::set_snapshot_limit(copies); }

// count blocks of four uint32 words from counter[0] on; key and counter as in docs/operators.md.
EMU_EXPORT void emu_philox(const uint32_t key[2], const uint32_t counter[4], int64_t count, uint32_t* out) {
  emu::kernels().words(emu::counter_of(key, counter), count, out);
}

// count standard normals: columns [first_column, first_column + count) of the row whose first block is counter[0].
EMU_EXPORT void emu_normals(const uint32_t key[2], const uint32_t counter[4], int64_t first_column, int64_t count,
                            float* out) {
  emu::kernels().normals(emu::counter_of(key, counter), first_column, count, out);
}

// The stored values W' of one chip. Returns 0, or 1 with a sentence in emu_last_error.
EMU_EXPORT int emu_program(const emu::GivenNode* node, float* out) {
  return emu::guarded_code([&] {
    const emu::StoredArray stored = emu::stored_for(*node, false);
    std::copy(stored.slices[0].begin(), stored.slices[0].end(), out);
  });
}

// As emu_program, for reading: v [slices, matrices, rows, columns], the scales [matrices, row tiles, columns] and,
// where the offset is corrected by reading cells, v of the unit column [slices, matrices, rows]; where read noise is in
// proportion to devices, the sum of their g^2, like v. counts holds the slices, the row tiles of a matrix and the
// slices of the unit column and of the squares that the caller made room for.
EMU_EXPORT int emu_program_for_reading(const emu::GivenNode* node, const int64_t counts[4], float* v, float* scales,
                                       float* unit_column, float* squares) {
  return emu::guarded_code([&] {
    const emu::StoredArray stored = emu::stored_for(*node, true);
    const auto copy_all = [](const std::vector<emu::Floats>& parts, int64_t count, int64_t size, float* out) {
      if (static_cast<int64_t>(parts.size()) != count)
        throw emu::Error("attributes: they give another number of slices");
      for (const emu::Floats& part : parts) {
        std::copy(part.begin(), part.begin() + static_cast<ptrdiff_t>(size), out);
        out += size;
      }
    };
    copy_all(stored.slices, counts[0], node->matrices * node->rows * node->columns, v);
    if (static_cast<int64_t>(stored.scales.size()) != node->matrices * counts[1] * node->columns) {
      throw emu::Error("attributes: they give another number of row tiles");
    }
    std::copy(stored.scales.begin(), stored.scales.end(), scales);
    copy_all(stored.unit_columns, counts[2], node->matrices * node->rows, unit_column);
    if (counts[3] > 0) copy_all(stored.noise_weights, counts[3], node->matrices * node->rows * node->columns, squares);
  });
}

// Standard normals (or uniforms in (0, 1]) of run-time noise: columns [first_column, first_column + count) of rows that
// lie in these samples, matrices and positions.
EMU_EXPORT void emu_run_time_normals(const uint32_t seeds[2], uint32_t site, uint32_t c3, const uint32_t* samples,
                                     const uint32_t* matrices, const uint32_t* positions, int64_t rows,
                                     int64_t first_column, int64_t count, int64_t uniform, float* out) {
  const auto fill = uniform != 0 ? emu::kernels().uniforms : emu::kernels().normals;
  emu::SampleKey key{};
  for (int64_t row = 0; row < rows; ++row) {
    if (row == 0 || samples[row] != samples[row - 1]) key = emu::sample_key(seeds[0], seeds[1], samples[row]);
    emu::Counter counter;
    counter.key0 = key.key0;
    counter.key1 = key.key1;
    counter.c1 = positions[row];
    counter.c2 = site + (matrices[row] << 16);
    counter.c3 = c3;
    fill(counter, first_column, count, out + row * count);
  }
}

// Makes a device model written elsewhere known to `program` `function`; null forgets it.
EMU_EXPORT int emu_register_function(const char* name, emu::ProgramFunction function) {
  return emu::guarded_code([&] { emu::register_program_function(name, function); });
}

// For such a function, before it returns a failure: what went wrong.
EMU_EXPORT void emu_set_function_error(const char* sentence) { emu::set_program_function_error(sentence); }

}  // extern "C"
