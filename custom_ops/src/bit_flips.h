// Bit flips of stored codes and floats, docs/operators.md "Faults": which bits flip, and what the numbers are then.
#pragma once

#include <cstdint>
#include <vector>

#include "structure.h"

namespace emu {

// Which bits of an array flip.
struct BitFlips {
  int bits = 8;            // of an element: 2, 4, 8 or 16 for codes, 8, 16 or 32 for floats
  double probability = 0;  // of a random flip of one bit, strength included; 0 to 1
  uint32_t mask = 0;       // bits of an element that may flip at random
  FaultProtection protection = FaultProtection::kNone;  // against random flips
  uint32_t seed = 0;
  uint32_t array = 0;
  std::vector<int64_t> list;  // further flips, element * 256 + bit; other faults are skipped
};

// Rounds floats in place to the type that they are stored as, and flips bits of them.
void flip_floats(const BitFlips& flips, const FloatType& type, int64_t elements, const ForEach& for_each,
                 float* values);

// The codes of a quantized model, [matrices, rows, columns]; codes of fewer than 8 bits are sign-extended.
struct ModelCodes {
  const int8_t* bytes = nullptr;
  bool two_bytes = false;  // of each code, the low one first
  const float* scale = nullptr;
  const float* zero_point = nullptr;
  int64_t matrices = 1;
  int64_t rows = 0;
  int64_t columns = 0;
  bool per_column = false;  // shape [matrices, columns] of scale and zero_point, else []
  int64_t block_rows = 0;   // > 0: shape [matrices, ceil(rows / block_rows), columns]

  int32_t code(int64_t element) const {
    if (!two_bytes) return bytes[element];
    return bytes[2 * element + 1] * 256 + static_cast<uint8_t>(bytes[2 * element]);
  }

  // Where the scale and zero point of an element are.
  int64_t scale_of(int64_t element) const {
    if (!per_column && block_rows == 0) return 0;
    const int64_t row = element / columns;
    const int64_t blocks = block_rows > 0 ? (rows + block_rows - 1) / block_rows : 1;
    const int64_t block = block_rows > 0 ? row % rows / block_rows : 0;
    return (row / rows * blocks + block) * columns + element % columns;
  }
};

// values holds the weights of the unchanged codes; those of changed codes are replaced.
void flip_model_codes(const BitFlips& flips, const ModelCodes& codes, const ForEach& for_each, float* values);

// How float weights [.., columns] become codes: code = clip(rint(w / scale) + zero, low, high).
struct CodeScales {
  std::vector<float> scale;  // of each column, for every so many rows
  std::vector<float> zero;
  int64_t rows = 0;
  float low = 0;
  float high = 0;
};

// W [matrices, rows, columns]: one scale for all, or one for each column of each matrix.
CodeScales code_scales(int bits, bool asymmetric, bool per_column, const float* w, int64_t matrices, int64_t rows,
                       int64_t columns, const ForEach& for_each);

// Rounds all weights to their codes, flips bits of the codes, and writes the weights that they stand for. out may be w.
void flip_made_codes(const BitFlips& flips, const CodeScales& scales, const float* w, int64_t rows, int64_t columns,
                     const ForEach& for_each, float* out);

}  // namespace emu
