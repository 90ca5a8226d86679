// Chooses the instruction set, once, when the library is first used.
#include "kernels.h"

#include <atomic>
#include <cstring>
#include <initializer_list>

namespace emu {

const Kernels& baseline_kernels();
#if defined(EMU_X86)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512_vnni_kernels();
#endif

namespace {

using Table = const Kernels& (*)();

bool runs_here(const char* name) {
#if defined(EMU_X86)
  __builtin_cpu_init();
  if (std::strcmp(name, "avx512_vnni") == 0) return runs_here("avx512") && __builtin_cpu_supports("avx512vnni");
  if (std::strcmp(name, "avx512") == 0) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  }
  if (std::strcmp(name, "avx2") == 0) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return std::strcmp(name, "baseline") == 0;
}

Table find(const char* name) {
#if defined(EMU_X86)
  if (std::strcmp(name, "avx512_vnni") == 0) return avx512_vnni_kernels;
  if (std::strcmp(name, "avx512") == 0) return avx512_kernels;
  if (std::strcmp(name, "avx2") == 0) return avx2_kernels;
#endif
  return std::strcmp(name, "baseline") == 0 ? baseline_kernels : nullptr;
}

Table best() {
  for (const char* name : {"avx512_vnni", "avx512", "avx2"}) {
    const Table table = find(name);
    if (table != nullptr && runs_here(name)) return table;
  }
  return baseline_kernels;
}

std::atomic<Table>& current() {
  static std::atomic<Table> table{best()};
  return table;
}

}  // namespace

const Kernels& kernels() { return current().load(std::memory_order_relaxed)(); }

bool use_kernels(const char* name) {
  const Table table = std::strcmp(name, "best") == 0 ? best() : find(name);
  if (table == nullptr || (std::strcmp(name, "best") != 0 && !runs_here(name))) return false;
  current().store(table);
  return true;
}

}  // namespace emu
