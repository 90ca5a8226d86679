// Values held by crossbars: their scales, and what becomes of them when they are stored.
#pragma once

#include <cstdint>
#include <vector>

#include "bit_flips.h"
#include "floats.h"
#include "kernels.h"
#include "philox.h"
#include "structure.h"

namespace emu {

// Scales of one matrix W [rows, columns]: for row tile t and column n, scales[t * columns + n].
std::vector<float> weight_scales(const Structure& structure, const Device& device, const float* w, int64_t rows,
                                 int64_t columns);
std::vector<float> weight_scales(Scaling scaling, const Device& device, const float* w, int64_t columns,
                                 const std::vector<Span>& row_tiles, const std::vector<Span>& column_tiles);

// What the stored values depend on; equal keys give equal values.
struct StoreKey {
  std::vector<float> numbers;  // of the device
  float strength = 1;
  uint32_t seed = 0;
  uint32_t read_seed = 0;       // 0 where nothing depends on it
  std::vector<int64_t> faults;  // the list of the array

  bool operator==(const StoreKey& other) const {
    return numbers == other.numbers && strength == other.strength && seed == other.seed &&
           read_seed == other.read_seed && faults == other.faults;
  }
};

StoreKey store_key(const Structure& structure, const Device& device, float strength, uint32_t seed, uint32_t read_seed,
                   std::vector<int64_t> faults);

// Whether storing changes nothing.
bool stores_exactly(const Structure& structure, const Device& device, float strength);

// Where values packed for reading lie: for row tile t and column group g, so many matrices [rows of t, columns of g],
// each packed, one after another.
class BlockLayout {
 public:
  BlockLayout(const Packing& packing, const std::vector<Span>& row_tiles, const std::vector<Span>& column_groups,
              int64_t matrices = 1);
  int64_t offset(size_t t, size_t g) const { return offsets_[t * groups_ + g]; }
  int64_t size() const { return size_; }

 private:
  size_t groups_;
  std::vector<int64_t> offsets_;
  int64_t size_ = 0;
};

// How values are packed: as fixed-point numbers where all that reading needs of the inputs are codes of at most 8 bits,
// else as floats. rows: of the matrix.
const Packing& packing_for(const Structure& structure, const Device& device, int64_t rows, bool for_reading);

// Whether a convolution's matrices [rows, columns] are read as NarrowRead can, which wants them as columns.
bool reads_narrow(const Structure& structure, const Device& device, int64_t rows, int64_t columns);

// How what is read becomes a weight in units of its scale: the sum of factor * reading over the slices, less the
// offset.
struct Decoding {
  std::vector<float> factors;
  double offset = 0;
};
Decoding decoding(const Structure& structure, const Device& device);

// What the arrays of one chip hold for a stack of matrices, whose rows are numbered through; immutable once made.
struct StoredArray {
  StoreKey key;
  const Packing* packing = nullptr;  // null: not packed
  // For reading: v of docs/operators.md, slice by slice, in units of g_max. Else W'. [all rows, columns], or packed:
  // then for reading in the layout of its tiles, else matrix by matrix.
  std::vector<Floats> slices;
  std::vector<Floats> noise_weights;  // what the variance of read noise is proportional to, if needed; as slices
  std::vector<Floats> magnitudes;     // |v|, only for the formula of IR drop
  std::vector<Floats> unit_columns;   // of each slice, [all rows]
  // As weight_scales gives them, matrix by matrix, with compensation; may be missing where nothing is read.
  std::vector<float> scales;
};

// A stack of matrices [matrices, rows, columns].
struct Matrices {
  const float* values = nullptr;
  int64_t count = 1;
  int64_t rows = 0;
  int64_t columns = 0;
  const ModelCodes* codes = nullptr;  // of a quantized model
};

// Throws Error if a fault of the list lies outside the array.
void check_faults(const Structure& structure, const Matrices& w, const std::vector<int64_t>& faults);

StoredArray store_array(const Structure& structure, const Device& device, const StoreKey& key, const Matrices& w,
                        bool for_reading, const ForEach& for_each);

// As columns, one after another: W transposed.
const Packing& column_packing();

// Packs matrices, each as a whole.
Floats pack_whole(const Packing& packing, const float* values, int64_t matrices, int64_t rows, int64_t columns,
                  const ForEach& for_each);

// Packs what store_array made of matrices [matrices, rows, columns], and adds what reading needs beside it.
void pack_array(const Structure& structure, const Packing& packing, int64_t matrices, int64_t rows, int64_t columns,
                bool for_reading, const ForEach& for_each, StoredArray& array);

// Whether an operand is limited to its scale.
inline bool clips_operand(const Structure& structure, const Device& device) {
  return device.mapping_percentile > 0 || structure.write_scaling == WriteScaling::kCalibrated;
}

// Where a matrix of an operand is written.
struct OperandPlace {
  SampleKey key;
  uint32_t matrix;  // within the sample
  int64_t first_row = 0;
  int64_t first_column = 0;
};
// Writes rows [rows.begin, rows.end) of a matrix B [.., columns], which share scales (one for each column), into out;
// for reading, in units of the scales (conductances: of g_max). out may be b. squares: where g+^2 + g-^2 goes, or null.
void write_operand(const Structure& structure, const Device& device, float strength, const float* b, int64_t columns,
                   const Span& rows, const float* scales, bool for_reading, const OperandPlace& place, float* out,
                   float* squares);

// Whether the variance of read noise is a product of its own, with what; it follows from v, element by element, where
// it is not that of devices.
bool needs_noise_weights(const Structure& structure);
bool has_noise_of_devices(const Structure& structure);
void noise_weights(const Structure& structure, const float* values, int64_t count, float* out);
// How these are packed for tiles of B [rows, ..]: exactly, or to 8 bits, in bytes where there are products of them.
const Packing& noise_packing_for(const Structure& structure, int64_t rows);

}  // namespace emu
