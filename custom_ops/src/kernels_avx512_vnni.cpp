// Compiled with this instruction set's flags; see CMakeLists.txt.
#include "kernels.inl"

namespace emu {
EMU_DEFINE_KERNELS(avx512_vnni_kernels, "avx512_vnni")
}  // namespace emu
