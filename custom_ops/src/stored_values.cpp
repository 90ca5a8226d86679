#include "stored_values.h"

#include <algorithm>

#include "ort.h"

namespace emu {

std::vector<float> weight_scales(const Structure& structure, const float* w, int64_t rows, int64_t columns) {
  const std::vector<Span> row_tiles = structure.row_tiles(rows);
  const std::vector<Span> column_tiles = structure.column_tiles(columns);
  std::vector<float> scales(row_tiles.size() * static_cast<size_t>(columns), 0.0f);
  // Column maxima per row tile first; every coarser scale is a maximum of these.
  for (size_t t = 0; t < row_tiles.size(); ++t) {
    float* row = scales.data() + t * static_cast<size_t>(columns);
    for (int64_t k = row_tiles[t].begin; k < row_tiles[t].end; ++k) {
      kernels().update_magnitudes(w + k * columns, columns, row);
    }
  }
  const auto spread = [&](size_t first_tile, size_t last_tile, const Span& span) {
    float peak = 0;
    for (size_t t = first_tile; t < last_tile; ++t) {
      for (int64_t n = span.begin; n < span.end; ++n) peak = std::max(peak, scales[t * columns + n]);
    }
    for (size_t t = first_tile; t < last_tile; ++t) {
      for (int64_t n = span.begin; n < span.end; ++n) scales[t * columns + n] = peak;
    }
  };
  switch (structure.scaling) {
    case Scaling::kTensor:
      spread(0, row_tiles.size(), {0, columns});
      break;
    case Scaling::kColumn:
      for (int64_t n = 0; n < columns; ++n) spread(0, row_tiles.size(), {n, n + 1});
      break;
    case Scaling::kTile:
      for (size_t t = 0; t < row_tiles.size(); ++t) {
        for (const Span& span : column_tiles) spread(t, t + 1, span);
      }
      break;
    case Scaling::kTileColumn:
      break;
  }
  for (float& scale : scales) scale = scale > 0 ? scale : 1.0f;
  return scales;
}

StoreKey store_key(const Structure& structure, const Device& device, float strength, uint32_t seed,
                   uint32_t read_seed) {
  StoreKey key;
  if (structure.disturbance == Disturbance::kNone) return key;
  key.strength = strength;
  key.sigma = strength * device.sigma;
  key.sigma_cycle = structure.dynamic ? 0.0f : strength * device.sigma_cycle;
  if (structure.disturbance == Disturbance::kLognormalConductance) key.conductance_floor = device.conductance_floor();
  key.seed = seed;
  if (structure.dynamic || key.sigma_cycle > 0) key.read_seed = read_seed;
  return key;
}

bool stores_exactly(const Structure& structure, const StoreKey& key) {
  // A pair without variation holds p - m = W/s again, up to rounding: exact by definition.
  return structure.disturbance == Disturbance::kNone || (key.sigma == 0 && key.sigma_cycle == 0);
}

int64_t block_offset(const Span& row_tile, const Span& column_group, int64_t columns) {
  return row_tile.begin * columns + row_tile.size() * column_group.begin;
}

void write_values(const Structure& structure, const StoreKey& key, const float* w, int64_t rows, int64_t columns,
                  const std::vector<Span>& row_tiles, const std::vector<Span>& column_groups, const float* scales,
                  bool normalize, const DynamicRow* dynamic_row, const ForEach& for_each, float* out) {
  const auto blocks_per_row = static_cast<uint64_t>((columns + 3) / 4);
  StoreRow pattern;
  pattern.model = stores_exactly(structure, key) ? Disturbance::kNone : structure.disturbance;
  pattern.sigma = key.sigma;
  pattern.sigma_cycle = key.sigma_cycle;
  pattern.conductance_floor = key.conductance_floor;
  pattern.normalize = normalize;
  pattern.device.key0 = pattern.cycle.key0 = key.seed;
  pattern.device.c2 = pattern.cycle.c2 = static_cast<uint32_t>(structure.dynamic ? structure.site : structure.array);
  pattern.device.key1 = dynamic_row != nullptr ? key.read_seed : 0;
  pattern.device.wide_block = dynamic_row == nullptr;
  pattern.device.c1 = dynamic_row != nullptr ? dynamic_row->sample : 0;
  pattern.device.c3 = dynamic_row != nullptr ? kWrite : kProgram;
  pattern.cycle.key1 = key.read_seed;
  pattern.cycle.wide_block = true;
  pattern.cycle.c3 = kProgramCycle;

  std::vector<size_t> tile_of_row(static_cast<size_t>(rows));
  for (size_t t = 0; t < row_tiles.size(); ++t) {
    std::fill(tile_of_row.begin() + row_tiles[t].begin, tile_of_row.begin() + row_tiles[t].end, t);
  }
  // Enough rows per task that handing it out costs nothing beside it.
  const int64_t rows_per_task = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns));
  for_each((rows + rows_per_task - 1) / rows_per_task, [&](int64_t task) {
    StoreRow row = pattern;
    const int64_t last = std::min(rows, (task + 1) * rows_per_task);
    for (int64_t k = task * rows_per_task; k < last; ++k) {
      const size_t t = tile_of_row[static_cast<size_t>(k)];
      const uint64_t array_row = static_cast<uint64_t>(k) + (dynamic_row != nullptr ? dynamic_row->first_row : 0);
      row.device.block = array_row * blocks_per_row;
      row.cycle.block = row.device.block;
      for (const Span& group : column_groups) {
        float* target = out + block_offset(row_tiles[t], group, columns) + (k - row_tiles[t].begin) * group.size();
        kernels().store_row(row, w + k * columns + group.begin, scales + t * static_cast<size_t>(columns) + group.begin,
                            group.begin, group.size(), target);
      }
    }
  });
}

}  // namespace emu
