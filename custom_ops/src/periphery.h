// How products are read: DAC, tiles, noise, ADC, bound management; docs/operators.md "What is read".
// One engine serves stored weights (one matrix) and dynamic operands (a batch of matrices).
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "controls.h"
#include "ort.h"
#include "patches.h"
#include "stored_values.h"
#include "structure.h"

namespace emu {

// Memory that is kept between runs, because fresh pages cost more than the arithmetic done on them.
class Scratch {
 public:
  explicit Scratch(int64_t floats);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data() { return buffer_.data(); }

 private:
  std::vector<float> buffer_;
};

// A product Y [matrices, rows, columns] = A [a matrices, rows, depth] B [b matrices, depth, columns].
struct Product {
  const float* a = nullptr;
  int64_t matrices = 1;  // of Y
  int64_t rows = 0;
  int64_t depth = 0;
  int64_t columns = 0;
  std::vector<int64_t> a_of;  // matrix of A behind each matrix of Y; empty: the same index
  std::vector<int64_t> b_of;
  // If given, A is images, one for each matrix, whose rows are cut out by a window, and Y is [matrices, columns, rows].
  const Patches* patches = nullptr;
  float* y = nullptr;

  int64_t a_matrix(int64_t matrix) const { return a_of.empty() ? matrix : a_of[static_cast<size_t>(matrix)]; }
  int64_t b_matrix(int64_t matrix) const { return b_of.empty() ? matrix : b_of[static_cast<size_t>(matrix)]; }
};

// To be read in tiles.
struct CrossbarProduct : Product {
  const Structure* structure = nullptr;
  const Controls* controls = nullptr;
  int64_t b_matrices = 1;
  std::vector<Span> row_tiles;
  std::vector<Span> column_groups;
  const Packing* packing = nullptr;
  const Packing* noise_packing = nullptr;
  // What slice i of the array holds in tile t and group g, what its noise is proportional to, and its magnitude, each
  // as [b matrices] of packed [rows of the tile, columns of the group]; the last two only where the structure needs
  // them.
  std::function<const float*(size_t i, size_t t, size_t g)> tile;
  std::function<const float*(size_t i, size_t t, size_t g)> noise_tile;
  std::function<const float*(size_t i, size_t t, size_t g)> magnitude_tile;
  Decoding decoding;
  const std::vector<Floats>* unit_columns = nullptr;  // of each slice, [b matrices, depth]
  const float* scales = nullptr;                      // [b matrices, row tiles, columns]
  const SampleMap* samples = nullptr;                 // of the rows of Y
  int64_t first_y_row = 0;                            // among them
  // Where rows and columns of B lie in the arrays, if it is a part of what they hold.
  int64_t first_row = 0;
  int64_t first_column = 0;
  int64_t tile_rows = 0;  // of every tile, also of one that is not full; 0: as many as it has
};

// Rows of A with an infinite value or a NaN give NaN in the whole row of Y.
void read_product(const CrossbarProduct& product, const Context& context);

// The same for rows of Y [rows, columns] of which only a part is read: NaN where A [rows, depth] is not finite.
void mark_lost_rows(const Context& context, const float* a, int64_t rows, int64_t depth, int64_t columns, float* y);

// How B [rows, columns] of a plain product is packed.
const Packing& plain_packing(const Structure& structure, int64_t rows, int64_t columns);

// The plain product with B [b matrices, depth, columns] packed so, each matrix as a whole.
void multiply_plain(const Context& context, const Product& product, const Packing& packing, const float* packed);

}  // namespace emu
