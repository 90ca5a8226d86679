// Compiled with this instruction set's flags; see CMakeLists.txt.
#include "kernels.inl"

namespace emu {
EMU_DEFINE_KERNELS(baseline_kernels, "baseline")
}  // namespace emu
