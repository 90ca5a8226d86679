#include "crossbar_matmul_dynamic.h"

#include <algorithm>
#include <limits>
#include <map>

#include "periphery.h"
#include "stored_values.h"

namespace emu {

// Shapes of one run, broadcast as MatMul does it.
struct CrossbarMatMulDynamic::Batch {
  Tensor a;
  Tensor b;
  Shape a_leading;
  Shape b_leading;
  Shape y_leading;
  int64_t rows = 0;
  int64_t depth = 0;
  int64_t columns = 0;
  std::vector<int64_t> a_of;  // empty where no broadcasting takes place
  std::vector<int64_t> b_of;
};

namespace {

Shape broadcast(const Shape& a, const Shape& b, const std::string& node) {
  const size_t rank = std::max(a.size(), b.size());
  Shape result(rank, 1);
  for (size_t i = 0; i < rank; ++i) {
    const int64_t da = i + a.size() < rank ? 1 : a[i + a.size() - rank];
    const int64_t db = i + b.size() < rank ? 1 : b[i + b.size() - rank];
    if (da != db && da != 1 && db != 1) {
      throw Error("node '" + node + "': leading dimensions " + to_string(a) + " and " + to_string(b) +
                  " do not broadcast");
    }
    result[i] = da == 1 ? db : da;
  }
  return result;
}

// For each matrix of the broadcast batch, the matrix of an operand; empty if they are the same.
std::vector<int64_t> sources(const Shape& operand, const Shape& batch) {
  if (product(operand) == product(batch)) return {};
  std::vector<int64_t> result(static_cast<size_t>(product(batch)));
  for (size_t i = 0; i < result.size(); ++i) {
    auto rest = static_cast<int64_t>(i);
    int64_t index = 0;
    int64_t stride = 1;
    for (size_t d = 0; d < operand.size(); ++d) {
      const int64_t batch_dim = batch[batch.size() - 1 - d];
      const int64_t dim = operand[operand.size() - 1 - d];
      index += (dim == 1 ? 0 : rest % batch_dim) * stride;
      stride *= dim;
      rest /= batch_dim;
    }
    result[i] = index;
  }
  return result;
}

}  // namespace

CrossbarMatMulDynamic::CrossbarMatMulDynamic(const NodeInfo& info)
    : structure_(structure_of(info, kKind)), matmul_(info) {}

// The part of a matrix of B that is written: all of it, or the keys that count.
struct CrossbarMatMulDynamic::Part {
  Span rows;  // of the matrix
  Span columns;
  int64_t first_row = 0;  // in the arrays
  int64_t first_column = 0;

  int64_t size() const { return rows.size() * columns.size(); }
  bool operator==(const Part& other) const {
    return rows.begin == other.rows.begin && rows.end == other.rows.end && columns.begin == other.columns.begin &&
           columns.end == other.columns.end && first_row == other.first_row && first_column == other.first_column;
  }
};

CrossbarMatMulDynamic::Part CrossbarMatMulDynamic::part_of(const Batch& batch, const Controls& controls,
                                                           int64_t sample) const {
  Part part{{0, batch.depth}, {0, batch.columns}};
  if (structure_.key_axis == KeyAxis::kNone || controls.keys.empty()) return part;
  const bool along_rows = structure_.key_axis == KeyAxis::kRows;
  Span& keys = along_rows ? part.rows : part.columns;
  const KeyEnds ends = controls.keys[controls.keys.size() == 1 ? 0 : static_cast<size_t>(sample)];
  const int64_t first = ends.last - keys.end;
  keys.begin = std::min(keys.end, std::max<int64_t>(0, -first));
  keys.end = std::max(keys.begin, std::min(keys.end, ends.counted - first));
  (along_rows ? part.first_row : part.first_column) = first + keys.begin;
  return part;
}

// Writes matrices of B and measures their scales.
class CrossbarMatMulDynamic::Writer {
 public:
  Writer(const CrossbarMatMulDynamic& node, const Controls& controls, const Batch& batch, const Context& context)
      : structure_(node.structure_),
        controls_(controls),
        batch_(batch),
        samples_(batch.b_leading, std::min<int64_t>(structure_.sample_axis, 0), controls) {
    const int64_t matrices = product(batch.b_leading);
    for (int64_t i = 0; i < samples_.samples(); ++i) {
      keys_.push_back(
          sample_key(controls.seed, controls.read_seed, samples_.first_sample() + static_cast<uint32_t>(i)));
      parts_.push_back(node.part_of(batch, controls, i));
      structure_.check_row_tiles(parts_.back().first_row + parts_.back().rows.size());
    }
    find_lost(matrices, context);
    if (structure_.write_scaling == WriteScaling::kSample) find_scales_of_samples(matrices);
  }

  const Part& part(int64_t m) const { return parts_[static_cast<size_t>(samples_.index(m).sample)]; }
  // Whether it has no scale, because it (or another matrix that shares its scale) is not finite.
  bool is_lost(int64_t m) const { return lost_[static_cast<size_t>(m)] != 0; }

  std::vector<Span> row_tiles(const Part& part) const {
    return structure_.key_axis == KeyAxis::kRows
               ? structure_.key_tiles(part.rows.size(), structure_.tile_rows, part.first_row)
               : structure_.row_tiles(part.rows.size());
  }
  std::vector<Span> column_tiles(const Part& part) const {
    return structure_.key_axis == KeyAxis::kColumns
               ? structure_.key_tiles(part.columns.size(), structure_.tile_columns, part.first_column)
               : structure_.column_tiles(part.columns.size());
  }

  // The part of matrix m that counts, [rows, columns] without gaps.
  void gather(int64_t m, float* out) const {
    const Part& own = part(m);
    const float* b = batch_.b.floats() + m * batch_.depth * batch_.columns;
    for (int64_t k = own.rows.begin; k < own.rows.end; ++k, out += own.columns.size()) {
      std::copy(b + k * batch_.columns + own.columns.begin, b + k * batch_.columns + own.columns.end, out);
    }
  }

  // Writes what gather gave of matrix m, in place. scales: [row tiles, columns], filled; row_scales: what the inputs of
  // each row are to be multiplied by instead where every key has a scale of its own along the rows, for reading;
  // squares: where those of devices go, or null.
  void write(int64_t m, bool for_reading, float* values, float* scales, float* row_scales,
             float* squares = nullptr) const {
    const Part& own = part(m);
    const int64_t columns = own.columns.size();
    const SampleMap::Index place = samples_.index(m);
    const OperandPlace where{keys_[static_cast<size_t>(place.sample)], controls_.seed,
                             static_cast<uint32_t>(place.within), own.first_row, own.first_column};
    const auto put = [&](const Span& rows, const float* of_columns) {
      write_operand(structure_, controls_.device, controls_.strength, values, columns, rows, of_columns, for_reading,
                    where, values, squares);
    };
    const std::vector<Span> tiles = row_tiles(own);
    const auto count = static_cast<int64_t>(tiles.size());
    if (structure_.write_scaling == WriteScaling::kToken && structure_.key_axis == KeyAxis::kRows) {
      std::fill(scales, scales + count * columns, 1.0f);
      std::vector<float> of_row(static_cast<size_t>(columns));
      for (int64_t k = 0; k < own.rows.size(); ++k) {
        const float scale = scale_of(values + k * columns, columns);
        std::fill(of_row.begin(), of_row.end(), scale);
        put({k, k + 1}, of_row.data());
        if (row_scales != nullptr) row_scales[k] = scale;
      }
      return;
    }
    switch (structure_.write_scaling) {
      case WriteScaling::kCalibrated:
        std::fill(scales, scales + count * columns, controls_.ranges[0].operand);
        break;
      case WriteScaling::kSample:
        std::fill(scales, scales + count * columns, scale_of_sample_.at(place.sample));
        break;
      default: {
        const bool by_column = structure_.write_scaling == WriteScaling::kToken;
        const std::vector<float> measured = weight_scales(by_column ? Scaling::kColumn : structure_.scaling,
                                                          controls_.device, values, columns, tiles, column_tiles(own));
        std::copy(measured.begin(), measured.end(), scales);
      }
    }
    for (int64_t t = 0; t < count; ++t) put(tiles[static_cast<size_t>(t)], scales + t * columns);
  }

 private:
  // One for all of these values.
  float scale_of(const float* values, int64_t count) const {
    if (controls_.device.mapping_percentile > 0) {
      return weight_scales(Scaling::kTensor, controls_.device, values, 1, {{0, count}}, {{0, 1}})[0];
    }
    const float largest = kernels().largest_magnitude(values, count);
    return largest > 0 ? largest : 1.0f;
  }

  void find_lost(int64_t matrices, const Context& context) {
    lost_.assign(static_cast<size_t>(matrices), 0);
    context.parallel_for(matrices, [&](int64_t m) {
      const Part& own = part(m);
      const float* b = batch_.b.floats() + m * batch_.depth * batch_.columns;
      for (int64_t k = own.rows.begin; k < own.rows.end; ++k) {
        if (all_finite(b + k * batch_.columns + own.columns.begin, own.columns.size())) continue;
        lost_[static_cast<size_t>(m)] = 1;
        return;
      }
    });
    if (structure_.write_scaling != WriteScaling::kSample) return;
    std::map<int64_t, char> of_sample;
    for (int64_t m = 0; m < matrices; ++m) of_sample[samples_.index(m).sample] |= lost_[static_cast<size_t>(m)];
    for (int64_t m = 0; m < matrices; ++m) lost_[static_cast<size_t>(m)] = of_sample[samples_.index(m).sample];
  }

  void find_scales_of_samples(int64_t matrices) {
    std::map<int64_t, std::vector<float>> values_of;
    for (int64_t m = 0; m < matrices; ++m) {
      if (is_lost(m)) continue;
      std::vector<float>& values = values_of[samples_.index(m).sample];
      values.resize(values.size() + static_cast<size_t>(part(m).size()));
      gather(m, values.data() + values.size() - part(m).size());
    }
    for (const auto& [sample, values] : values_of) {
      scale_of_sample_[sample] = scale_of(values.data(), static_cast<int64_t>(values.size()));
    }
  }

  const Structure& structure_;
  const Controls& controls_;
  const Batch& batch_;
  SampleMap samples_;
  std::vector<SampleKey> keys_;  // of the samples of the batch
  std::vector<Part> parts_;
  std::vector<char> lost_;
  std::map<int64_t, float> scale_of_sample_;
};

namespace {

constexpr float kNotANumber = std::numeric_limits<float>::quiet_NaN();

}  // namespace

void CrossbarMatMulDynamic::crossbar_product(const Controls& controls, const Batch& batch, const Context& context,
                                             float* y) const {
  Shape y_shape = batch.y_leading;
  y_shape.push_back(batch.rows);
  const SampleMap samples(y_shape, structure_.sample_axis, controls);
  check_places(structure_, samples, controls);
  y_shape.push_back(batch.columns);
  const bool periphery = structure_.has_periphery();
  if (!periphery && stores_exactly(structure_, controls.device, controls.strength)) {
    matmul_.run(context, batch.a.floats(), batch.a.shape, batch.b.floats(), batch.b.shape, y, y_shape);
    return;
  }
  const Writer writer(*this, controls, batch, context);
  if (!periphery) {
    multiply_written(writer, batch, context, y, y_shape);
    return;
  }
  // Matrices whose keys lie alike are read together; mostly these are all.
  const int64_t matrices = product(batch.y_leading);
  const auto part = [&](int64_t m) { return writer.part(batch.b_of.empty() ? m : batch.b_of[static_cast<size_t>(m)]); };
  for (int64_t begin = 0; begin < matrices;) {
    int64_t end = begin + 1;
    while (end < matrices && part(end) == part(begin)) ++end;
    read_matrices(controls, writer, samples, batch, begin, end, context, y);
    begin = end;
  }
}

// Where nothing is read between: onnxruntime's product with what is written.
void CrossbarMatMulDynamic::multiply_written(const Writer& writer, const Batch& batch, const Context& context, float* y,
                                             const Shape& y_shape) const {
  const int64_t size = batch.depth * batch.columns;
  const int64_t matrices = product(batch.b_leading);
  Scratch written(matrices * size);
  context.parallel_for(matrices, [&](int64_t m) {
    float* target = written.data() + m * size;
    if (writer.is_lost(m)) {
      std::fill(target, target + size, kNotANumber);
      return;
    }
    const Part& part = writer.part(m);
    std::vector<float> scales(writer.row_tiles(part).size() * static_cast<size_t>(part.columns.size()));
    if (part.size() == size) {
      writer.gather(m, target);
      writer.write(m, false, target, scales.data(), nullptr);
      return;
    }
    Scratch values(part.size());
    writer.gather(m, values.data());
    writer.write(m, false, values.data(), scales.data(), nullptr);
    std::copy(batch.b.floats() + m * size, batch.b.floats() + (m + 1) * size, target);  // keys that nobody looks at
    const float* row = values.data();
    for (int64_t k = part.rows.begin; k < part.rows.end; ++k, row += part.columns.size()) {
      std::copy(row, row + part.columns.size(), target + k * batch.columns + part.columns.begin);
    }
  });
  matmul_.run(context, batch.a.floats(), batch.a.shape, written.data(), batch.b.shape, y, y_shape);
}

// Reads matrices [begin, end) of Y, whose operands have the same part.
void CrossbarMatMulDynamic::read_matrices(const Controls& controls, const Writer& writer, const SampleMap& samples,
                                          const Batch& batch, int64_t begin, int64_t end, const Context& context,
                                          float* y) const {
  const int64_t y_size = batch.rows * batch.columns;
  CrossbarProduct read;
  read.matrices = end - begin;
  std::vector<int64_t> written_of;  // matrix of B behind each that is written
  std::map<int64_t, int64_t> place_of;
  for (int64_t m = begin; m < end; ++m) {
    const int64_t b = batch.b_of.empty() ? m : batch.b_of[static_cast<size_t>(m)];
    if (place_of.emplace(b, static_cast<int64_t>(written_of.size())).second) written_of.push_back(b);
    read.b_of.push_back(place_of[b]);
    read.a_of.push_back(batch.a_of.empty() ? m : batch.a_of[static_cast<size_t>(m)]);
  }
  const Part& part = writer.part(written_of[0]);
  if (part.size() == 0) {
    std::fill(y + begin * y_size, y + end * y_size, 0.0f);
    return;
  }
  const int64_t depth = part.rows.size();
  const int64_t columns = part.columns.size();
  const bool scales_inputs = structure_.write_scaling == WriteScaling::kToken && structure_.key_axis == KeyAxis::kRows;
  const auto tiles = writer.row_tiles(part);
  const auto groups = structure_.decides_per_tile() ? writer.column_tiles(part) : std::vector<Span>{{0, columns}};
  const auto b_matrices = static_cast<int64_t>(written_of.size());
  // Every matrix is written by itself, then packed.
  std::vector<float> scales(static_cast<size_t>(b_matrices) * tiles.size() * static_cast<size_t>(columns), 1.0f);
  std::vector<float> row_scales(scales_inputs ? static_cast<size_t>(b_matrices * depth) : 0);
  const Packing& packing = packing_for(structure_, controls.device, depth, true);
  const BlockLayout layout(packing, tiles, groups, b_matrices);
  Scratch packed(layout.size());
  Scratch magnitudes(structure_.ir_drop == IrDrop::kFormula ? layout.size() : 0);
  Scratch variances(needs_noise_weights(structure_) ? layout.size() : 0);
  const bool by_device = has_noise_of_devices(structure_);
  context.parallel_for(b_matrices, [&](int64_t m) {
    Scratch written(part.size());
    Scratch squares(by_device ? part.size() : 0);
    if (writer.is_lost(written_of[static_cast<size_t>(m)])) {  // what would be read is replaced afterwards
      std::fill(written.data(), written.data() + part.size(), 0.0f);
      if (by_device) std::fill(squares.data(), squares.data() + part.size(), 0.0f);
    } else {
      writer.gather(written_of[static_cast<size_t>(m)], written.data());
      writer.write(written_of[static_cast<size_t>(m)], true, written.data(),
                   scales.data() + m * static_cast<int64_t>(tiles.size()) * columns,
                   scales_inputs ? row_scales.data() + m * depth : nullptr, by_device ? squares.data() : nullptr);
    }
    for (size_t t = 0; t < tiles.size(); ++t) {
      for (size_t g = 0; g < groups.size(); ++g) {
        const int64_t block_size = packing.size(tiles[t].size(), groups[g].size());
        const int64_t place = layout.offset(t, g) + m * block_size;
        packing.pack(written.data() + tiles[t].begin * columns + groups[g].begin, columns, tiles[t].size(),
                     groups[g].size(), packed.data() + place);
        if (structure_.ir_drop == IrDrop::kFormula) {
          kernels().absolute(packed.data() + place, block_size, magnitudes.data() + place);
        }
        if (by_device) {
          packing.pack(squares.data() + tiles[t].begin * columns + groups[g].begin, columns, tiles[t].size(),
                       groups[g].size(), variances.data() + place);
        } else if (needs_noise_weights(structure_)) {
          noise_weights(structure_, packed.data() + place, block_size, variances.data() + place);
        }
      }
    }
  });
  // Inputs of the keys that count, each times its key's scale.
  const bool own_inputs = scales_inputs || depth != batch.depth;
  Scratch inputs(own_inputs ? read.matrices * batch.rows * depth : 0);
  read.a = batch.a.floats();
  if (own_inputs) {
    context.parallel_for(read.matrices, [&](int64_t m) {
      const float* a = read.a + read.a_of[static_cast<size_t>(m)] * batch.rows * batch.depth + part.rows.begin;
      const float* s = scales_inputs ? row_scales.data() + read.b_of[static_cast<size_t>(m)] * depth : nullptr;
      float* out = inputs.data() + m * batch.rows * depth;
      for (int64_t row = 0; row < batch.rows; ++row, a += batch.depth, out += depth) {
        for (int64_t k = 0; k < depth; ++k) out[k] = s == nullptr ? a[k] : a[k] * s[k];
      }
    });
    read.a = inputs.data();
    read.a_of.clear();
  }
  const bool own_outputs = columns != batch.columns;
  Scratch outputs(own_outputs ? read.matrices * batch.rows * columns : 0);
  read.structure = &structure_;
  read.controls = &controls;
  read.rows = batch.rows;
  read.depth = depth;
  read.columns = columns;
  read.b_matrices = b_matrices;
  read.row_tiles = tiles;
  read.column_groups = groups;
  read.packing = &packing;
  read.tile = [&](size_t, size_t t, size_t g) { return packed.data() + layout.offset(t, g); };
  read.noise_packing = &packing;
  read.noise_tile = [&](size_t, size_t t, size_t g) { return variances.data() + layout.offset(t, g); };
  read.scales = scales.data();
  read.magnitude_tile = [&](size_t, size_t t, size_t g) { return magnitudes.data() + layout.offset(t, g); };
  read.decoding = decoding(structure_, controls.device);
  read.samples = &samples;
  read.first_y_row = begin * batch.rows;
  read.first_row = part.first_row;
  read.first_column = part.first_column;
  if (structure_.key_axis == KeyAxis::kRows) read.tile_rows = structure_.tile_rows;
  read.y = own_outputs ? outputs.data() : y + begin * y_size;
  read_product(read, context);
  for (int64_t m = 0; own_outputs && m < read.matrices * batch.rows; ++m) {
    float* row = y + begin * y_size + m * batch.columns;
    std::fill(row, row + batch.columns, 0.0f);
    std::copy(outputs.data() + m * columns, outputs.data() + (m + 1) * columns, row + part.columns.begin);
  }
  for (int64_t m = 0; m < read.matrices; ++m) {
    if (!writer.is_lost(written_of[static_cast<size_t>(read.b_of[static_cast<size_t>(m)])])) continue;
    std::fill(y + (begin + m) * y_size, y + (begin + m + 1) * y_size, kNotANumber);
  }
}

void CrossbarMatMulDynamic::compute(const Context& context) {
  Batch batch;
  batch.a = context.input(0);
  batch.b = context.input(1);
  const Controls controls = read_controls(structure_, context);
  const Shape& a = batch.a.shape;
  const Shape& b = batch.b.shape;
  if (a.size() < 2 || b.size() < 2 || a.back() != b[b.size() - 2]) {
    throw Error("node '" + structure_.node + "': A " + to_string(a) + " and B " + to_string(b) +
                " cannot be multiplied; expected [..., M, K] and [..., K, N]");
  }
  if (structure_.sample_axis == 1 && a.size() < 3) {
    throw Error("node '" + structure_.node + "': A has shape " + to_string(a) +
                "; expected rank 3 or more because attribute 'sample_axis' is 1");
  }
  batch.a_leading = {a.begin(), a.end() - 2};
  batch.b_leading = {b.begin(), b.end() - 2};
  batch.y_leading = broadcast(batch.a_leading, batch.b_leading, structure_.node);
  batch.rows = a[a.size() - 2];
  batch.depth = a.back();
  structure_.check_range_tiles(static_cast<int64_t>(structure_.row_tiles(batch.depth).size()), "B");
  batch.columns = b.back();
  batch.a_of = sources(batch.a_leading, batch.y_leading);
  batch.b_of = sources(batch.b_leading, batch.y_leading);

  Shape y_shape = batch.y_leading;
  y_shape.push_back(batch.rows);
  check_samples(structure_, SampleMap(y_shape, structure_.sample_axis, controls));
  check_samples(structure_, SampleMap(batch.b_leading, std::min<int64_t>(structure_.sample_axis, 0), controls));
  y_shape.push_back(batch.columns);
  const Tensor y = context.output(0, y_shape);
  if (product(y_shape) == 0) return;
  if (batch.depth == 0) {
    std::fill(y.mutable_floats(), y.mutable_floats() + y.size(), 0.0f);
    return;
  }
  const bool exact = stores_exactly(structure_, controls.device, controls.strength);
  if (controls.exact || (!structure_.has_periphery() && exact)) {
    matmul_.run(context, batch.a, batch.b, y);
    return;
  }
  if (controls.head < 0) {
    crossbar_product(controls, batch, context, y.mutable_floats());
    return;
  }
  // Only the matrices of one head come from the crossbar.
  matmul_.run(context, batch.a, batch.b, y);
  const int64_t matrix_size = batch.rows * batch.columns;
  const int64_t matrices = product(batch.y_leading);
  Scratch disturbed(matrices * matrix_size);
  crossbar_product(controls, batch, context, disturbed.data());
  // M is not counted; where M itself carries the samples, every leading index counts.
  const bool samples_in_rows = structure_.sample_axis >= static_cast<int64_t>(batch.y_leading.size());
  const SampleMap heads(batch.y_leading, samples_in_rows ? -1 : structure_.sample_axis, controls);
  for (int64_t m = 0; m < matrices; ++m) {
    if (heads.index(m).within % structure_.heads != controls.head) continue;
    std::copy(disturbed.data() + m * matrix_size, disturbed.data() + (m + 1) * matrix_size,
              y.mutable_floats() + m * matrix_size);
  }
}

}  // namespace emu
