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

// Matrices of B that have no scale, because they (or another one that shares their scale) are not finite.
std::vector<char> CrossbarMatMulDynamic::lost_matrices(const Batch& batch, const SampleMap& samples,
                                                       const Context& context) const {
  const int64_t size = batch.depth * batch.columns;
  std::vector<char> lost(static_cast<size_t>(product(batch.b_leading)));
  context.parallel_for(static_cast<int64_t>(lost.size()), [&](int64_t m) {
    lost[static_cast<size_t>(m)] = all_finite(batch.b.floats() + m * size, size) ? 0 : 1;
  });
  if (structure_.write_scaling == WriteScaling::kMatrix) return lost;
  std::map<uint32_t, char> of_sample;
  for (size_t m = 0; m < lost.size(); ++m) of_sample[samples.locate(static_cast<int64_t>(m)).sample] |= lost[m];
  for (size_t m = 0; m < lost.size(); ++m) lost[m] = of_sample[samples.locate(static_cast<int64_t>(m)).sample];
  return lost;
}

// Of every matrix by itself, or one of all matrices of a sample. Those of lost ones stay as they are.
void CrossbarMatMulDynamic::measure_scales(const Controls& controls, const Batch& batch, const SampleMap& samples,
                                           const std::vector<char>& lost, const Context& context,
                                           std::vector<float>& scales) const {
  const int64_t matrices = product(batch.b_leading);
  const int64_t size = batch.depth * batch.columns;
  if (structure_.write_scaling == WriteScaling::kMatrix) {
    context.parallel_for(matrices, [&](int64_t m) {
      if (lost[static_cast<size_t>(m)] != 0) return;
      const std::vector<float> own =
          weight_scales(structure_, controls.device, batch.b.floats() + m * size, batch.depth, batch.columns);
      std::copy(own.begin(), own.end(), scales.begin() + m * static_cast<int64_t>(own.size()));
    });
    return;
  }
  std::map<uint32_t, std::vector<float>> values_of;
  for (int64_t m = 0; m < matrices; ++m) {
    if (lost[static_cast<size_t>(m)] != 0) continue;
    std::vector<float>& values = values_of[samples.locate(m).sample];
    values.insert(values.end(), batch.b.floats() + m * size, batch.b.floats() + (m + 1) * size);
  }
  const int64_t of_matrix = static_cast<int64_t>(scales.size()) / std::max<int64_t>(1, matrices);
  std::map<uint32_t, float> scale_of;
  for (const auto& [sample, values] : values_of) {
    Structure one_tile = structure_;
    one_tile.tile_rows = 0;
    scale_of[sample] =
        weight_scales(one_tile, controls.device, values.data(), static_cast<int64_t>(values.size()), 1)[0];
  }
  for (int64_t m = 0; m < matrices; ++m) {
    if (lost[static_cast<size_t>(m)] != 0) continue;
    std::fill(scales.begin() + m * of_matrix, scales.begin() + (m + 1) * of_matrix, scale_of[samples.locate(m).sample]);
  }
}

void CrossbarMatMulDynamic::crossbar_product(const Controls& controls, const Batch& batch, const Context& context,
                                             float* y) const {
  const bool periphery = structure_.has_periphery();
  const int64_t matrices = product(batch.b_leading);
  const int64_t size = batch.depth * batch.columns;
  Shape y_shape = batch.y_leading;
  y_shape.push_back(batch.rows);
  y_shape.push_back(batch.columns);
  if (!periphery && stores_exactly(structure_, controls.device, controls.strength)) {
    matmul_.run(context, batch.a.floats(), batch.a.shape, batch.b.floats(), batch.b.shape, y, y_shape);
    return;
  }

  const auto tiles = structure_.row_tiles(batch.depth);
  if (tiles.size() > 65536) {
    throw Error("node '" + structure_.node + "', attribute 'tile_rows': more than 65536 row tiles; use larger tiles");
  }
  const auto groups = structure_.column_groups(batch.columns);
  const auto blocks_per_row = static_cast<uint64_t>((batch.columns + 3) / 4);
  const int64_t b_axis = structure_.sample_axis < 0 ? -1 : 0;
  const SampleMap b_samples(batch.b_leading, b_axis, controls);
  check_counter_range(structure_, b_samples, matrices, static_cast<uint64_t>(batch.depth) * blocks_per_row);

  const std::vector<char> lost = lost_matrices(batch, b_samples, context);
  std::vector<float> scales(static_cast<size_t>(matrices) * tiles.size() * static_cast<size_t>(batch.columns), 1.0f);
  measure_scales(controls, batch, b_samples, lost, context, scales);
  const float not_a_number = std::numeric_limits<float>::quiet_NaN();
  const auto write = [&](int64_t m, float* target) {
    if (lost[static_cast<size_t>(m)] != 0) {  // for reading: what would be read is replaced afterwards
      std::fill(target, target + size, periphery ? 0.0f : not_a_number);
      return;
    }
    const SampleRow place = b_samples.locate(m);
    const DynamicRow row{place.sample, place.row * static_cast<uint64_t>(batch.depth)};
    write_operand(structure_, controls.device, controls.strength, controls.seed, controls.read_seed,
                  batch.b.floats() + m * size, batch.columns, tiles,
                  scales.data() + m * static_cast<int64_t>(tiles.size()) * batch.columns, periphery, row, target);
  };
  if (!periphery) {
    Scratch written(matrices * size);
    context.parallel_for(matrices, [&](int64_t m) { write(m, written.data() + m * size); });
    matmul_.run(context, batch.a.floats(), batch.a.shape, written.data(), batch.b.shape, y, y_shape);
    return;
  }
  // Every matrix is written by itself, then packed.
  const Packing& packing = packing_for(structure_, controls.device, batch.depth, periphery);
  const BlockLayout layout(packing, tiles, groups, matrices);
  Scratch packed(layout.size());
  Scratch magnitudes(structure_.ir_drop == IrDrop::kFormula ? layout.size() : 0);
  Scratch variances(needs_noise_weights(structure_) ? layout.size() : 0);
  context.parallel_for(matrices, [&](int64_t m) {
    Scratch written(size);
    write(m, written.data());
    for (size_t t = 0; t < tiles.size(); ++t) {
      for (size_t g = 0; g < groups.size(); ++g) {
        const int64_t block_size = packing.size(tiles[t].size(), groups[g].size());
        const int64_t place = layout.offset(t, g) + m * block_size;
        packing.pack(written.data() + tiles[t].begin * batch.columns + groups[g].begin, batch.columns, tiles[t].size(),
                     groups[g].size(), packed.data() + place);
        if (structure_.ir_drop == IrDrop::kFormula) {
          kernels().absolute(packed.data() + place, block_size, magnitudes.data() + place);
        }
        if (needs_noise_weights(structure_)) {
          noise_weights(structure_, packed.data() + place, block_size, variances.data() + place);
        }
      }
    }
  });

  Shape y_rows = batch.y_leading;
  y_rows.push_back(batch.rows);
  const SampleMap samples(y_rows, structure_.sample_axis, controls);
  check_counter_range(structure_, samples, product(y_rows), blocks_per_row);
  CrossbarProduct read;
  read.structure = &structure_;
  read.controls = &controls;
  read.a = batch.a.floats();
  read.matrices = product(batch.y_leading);
  read.rows = batch.rows;
  read.depth = batch.depth;
  read.columns = batch.columns;
  read.a_of = batch.a_of;
  read.b_of = batch.b_of;
  read.b_matrices = matrices;
  read.row_tiles = tiles;
  read.column_groups = groups;
  read.packing = &packing;
  read.tile = [&](size_t, size_t t, size_t g) { return packed.data() + layout.offset(t, g); };
  read.noise_tile = [&](size_t, size_t t, size_t g) { return variances.data() + layout.offset(t, g); };
  read.scales = scales.data();
  read.magnitude_tile = [&](size_t, size_t t, size_t g) { return magnitudes.data() + layout.offset(t, g); };
  read.decoding = decoding(structure_, controls.device);
  read.samples = &samples;
  read.y = y;
  read_product(read, context);
  for (int64_t m = 0; m < read.matrices; ++m) {
    const int64_t own = batch.b_of.empty() ? m : batch.b_of[static_cast<size_t>(m)];
    if (lost[static_cast<size_t>(own)] == 0) continue;
    std::fill(y + m * batch.rows * batch.columns, y + (m + 1) * batch.rows * batch.columns, not_a_number);
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
    if (static_cast<int64_t>(heads.locate(m).row) % structure_.heads != controls.head) continue;
    std::copy(disturbed.data() + m * matrix_size, disturbed.data() + (m + 1) * matrix_size,
              y.mutable_floats() + m * matrix_size);
  }
}

}  // namespace emu
