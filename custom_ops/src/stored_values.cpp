#include "stored_values.h"

#include <algorithm>
#include <cmath>

#include "functions.h"
#include "kernels.h"
#include "ort.h"
#include "patches.h"
#include "wires.h"

namespace emu {

namespace {

// The magnitude of the percentile's rank in a part of W.
float ranked_magnitude(const float* w, int64_t columns, const Span& rows, const Span& span, double percentile) {
  std::vector<float> magnitudes;
  magnitudes.reserve(static_cast<size_t>(rows.size() * span.size()));
  for (int64_t k = rows.begin; k < rows.end; ++k) {
    for (int64_t n = span.begin; n < span.end; ++n) magnitudes.push_back(std::fabs(w[k * columns + n]));
  }
  if (magnitudes.empty()) return 0;
  const auto rank = static_cast<long>(std::ceil(percentile * static_cast<double>(magnitudes.size())));
  std::nth_element(magnitudes.begin(), magnitudes.begin() + (rank - 1), magnitudes.end());
  return magnitudes[static_cast<size_t>(rank - 1)];
}

}  // namespace

std::vector<float> weight_scales(const Structure& structure, const Device& device, const float* w, int64_t rows,
                                 int64_t columns) {
  return weight_scales(structure.scaling, device, w, columns, structure.row_tiles(rows),
                       structure.column_tiles(columns));
}

std::vector<float> weight_scales(Scaling scaling, const Device& device, const float* w, int64_t columns,
                                 const std::vector<Span>& row_tiles, const std::vector<Span>& column_tiles) {
  std::vector<float> scales(row_tiles.size() * static_cast<size_t>(columns), 0.0f);
  const bool ranked = device.mapping_percentile > 0;
  // Column maxima per row tile first; every coarser scale is a maximum of these.
  for (size_t t = 0; t < row_tiles.size() && !ranked; ++t) {
    float* row = scales.data() + t * static_cast<size_t>(columns);
    for (int64_t k = row_tiles[t].begin; k < row_tiles[t].end; ++k) {
      kernels().update_magnitudes(w + k * columns, columns, row);
    }
  }
  const auto spread = [&](size_t first_tile, size_t last_tile, const Span& span) {
    float peak = 0;
    if (ranked) {
      const Span inside{row_tiles[first_tile].begin, row_tiles[last_tile - 1].end};
      peak = ranked_magnitude(w, columns, inside, span, device.mapping_percentile);
    }
    for (size_t t = first_tile; t < last_tile && !ranked; ++t) {
      for (int64_t n = span.begin; n < span.end; ++n) peak = std::max(peak, scales[t * columns + n]);
    }
    for (size_t t = first_tile; t < last_tile; ++t) {
      for (int64_t n = span.begin; n < span.end; ++n) scales[t * columns + n] = peak;
    }
  };
  switch (scaling) {
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
      for (size_t t = 0; t < row_tiles.size() && ranked; ++t) {
        for (int64_t n = 0; n < columns; ++n) spread(t, t + 1, {n, n + 1});
      }
      break;
  }
  for (float& scale : scales) scale = scale > 0 ? scale : 1.0f;
  return scales;
}

namespace {

bool noisy_compensation(const Structure& structure) {
  return structure.compensation == Compensation::kGlobal || structure.compensation == Compensation::kColumn;
}

// Runs body(k) for every row, enough rows at once that handing them out costs nothing beside them.
void for_rows(int64_t rows, int64_t columns, const ForEach& for_each, const std::function<void(int64_t)>& body) {
  const int64_t rows_per_task = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns));
  for_each((rows + rows_per_task - 1) / rows_per_task, [&](int64_t task) {
    const int64_t last = std::min(rows, (task + 1) * rows_per_task);
    for (int64_t k = task * rows_per_task; k < last; ++k) body(k);
  });
}

CurveRow row_of(const Curve& curve) {
  return {static_cast<int>(curve.target.size()), curve.target.data(), curve.mean.data(), curve.std.data()};
}

constexpr int64_t kFaultsPerElement = 256;
constexpr int64_t kFirstStuck = 64;

// Makes what one chip holds for one matrix.
class Storing {
 public:
  Storing(const Structure& structure, const Device& device, const StoreKey& key, const Matrices& w,
          const ForEach& for_each)
      : structure_(structure),
        device_(device),
        key_(key),
        strength_(key.strength),
        rows_(w.count * w.rows),
        columns_(w.columns),
        for_each_(for_each),
        matrices_(w),
        w_(w.values),
        row_tiles_(all_row_tiles(structure, w)),
        column_tiles_(structure.column_tiles(w.columns)),
        tile_of_row_(static_cast<size_t>(rows_)),
        floor_(device.floor()),
        range_(1.0f - device.floor()),
        decoding_(decoding(structure, device)) {
    for (size_t t = 0; t < row_tiles_.size(); ++t) {
      std::fill(tile_of_row_.begin() + row_tiles_[t].begin, tile_of_row_.begin() + row_tiles_[t].end, t);
    }
    flip_bits();
  }

  StoredArray run(bool for_reading) {
    const bool conductances = structure_.encoding != Encoding::kWeight;
    StoredArray stored;
    stored.key = key_;
    if (only_flips(for_reading)) {
      stored.slices.push_back(std::move(flipped_));
      return stored;
    }
    scales_ = all_scales();
    if (conductances) {
      stored.slices = stored_conductances(for_reading, stored.noise_weights);
    } else {
      stored.slices.push_back(stored_numbers(for_reading));
    }
    if (device_.program_modifier > 0) modify(conductances || for_reading, stored.slices[0]);
    if (conductances && !for_reading) decode(stored.slices);
    stored.scales = scales_;
    if (for_reading && needs_noise_weights(structure_) && stored.noise_weights.empty()) {
      for (const Floats& slice : stored.slices) {
        stored.noise_weights.emplace_back(slice.size());
        noise_weights(structure_, slice.data(), static_cast<int64_t>(slice.size()), stored.noise_weights.back().data());
      }
    }
    if (for_reading && structure_.unit_column()) {
      for (int64_t slice = 0; slice < structure_.slices(); ++slice) stored.unit_columns.push_back(unit_column(slice));
    }
    return stored;
  }

 private:
  // Tiles begin anew in every matrix.
  static std::vector<Span> all_row_tiles(const Structure& structure, const Matrices& w) {
    const std::vector<Span> tiles = structure.row_tiles(w.rows);
    std::vector<Span> all;
    for (int64_t m = 0; m < w.count; ++m) {
      for (const Span& tile : tiles) all.push_back({m * w.rows + tile.begin, m * w.rows + tile.end});
    }
    return all;
  }

  std::vector<float> all_scales() const {
    const auto of_matrix = structure_.row_tiles(matrices_.rows).size() * static_cast<size_t>(columns_);
    std::vector<float> scales(static_cast<size_t>(matrices_.count) * of_matrix);
    for_each_(matrices_.count, [&](int64_t m) {
      const float* values = matrices_.values + m * matrices_.rows * columns_;
      const std::vector<float> own = weight_scales(structure_, device_, values, matrices_.rows, columns_);
      std::copy(own.begin(), own.end(), scales.begin() + m * static_cast<int64_t>(of_matrix));
    });
    return scales;
  }

  // Whether bits flip and nothing else happens to the weights.
  bool only_flips(bool for_reading) const {
    const bool as_they_are = structure_.encoding == Encoding::kWeight && structure_.disturbance == Disturbance::kNone &&
                             !mapped(map()) && device_.program_modifier == 0;
    return as_they_are && !for_reading && w_ != matrices_.values;
  }

  // Whether numbers are clipped or rounded before they are disturbed.
  bool mapped(const MapRow& mapping) const { return mapping.clip || mapping.weight_steps > 0; }

  const float* scales_of(int64_t k) const {
    return scales_.data() + tile_of_row_[static_cast<size_t>(k)] * static_cast<size_t>(columns_);
  }

  Counter counter(uint32_t stream, uint32_t key1, int64_t k, int64_t columns = 0) const {
    Counter result;
    result.key0 = key_.seed;
    result.key1 = key1;
    result.block = static_cast<uint64_t>(k) * static_cast<uint64_t>(((columns > 0 ? columns : columns_) + 3) / 4);
    result.block_word = BlockWord::kWide;
    result.c2 = static_cast<uint32_t>(structure_.array);
    result.c3 = stream;
    return result;
  }

  void flip_bits() {
    check_faults(structure_, matrices_, key_.faults);
    if (structure_.fault_source == FaultSource::kNone || structure_.fault_storage == FaultStorage::kNone) return;
    BitFlips flips;
    flips.bits = structure_.stored_bits();
    flips.list = key_.faults;
    const bool random = structure_.fault_source == FaultSource::kRandom;
    flips.probability = random ? std::min(1.0f, strength_ * device_.faults_ber) : 0.0;
    flips.mask = structure_.usable_fault_mask();
    flips.protection = structure_.fault_protection;
    flips.seed = key_.seed;
    flips.array = static_cast<uint32_t>(structure_.array);
    const int64_t size = rows_ * columns_;
    if (structure_.kind != Operator::kQuantized && structure_.fault_storage == FaultStorage::kInt) {
      flipped_.resize(static_cast<size_t>(size));
      const CodeScales codes = code_scales(flips.bits, structure_.fault_range == FaultRange::kAsymmetric,
                                           structure_.fault_scale == FaultScale::kColumn, w_, matrices_.count,
                                           matrices_.rows, columns_, for_each_);
      flip_made_codes(flips, codes, w_, rows_, columns_, for_each_, flipped_.data());
    } else {
      flipped_.assign(w_, w_ + size);
      if (matrices_.codes != nullptr) {
        flip_model_codes(flips, *matrices_.codes, for_each_, flipped_.data());
      } else {
        flip_floats(flips, float_type(structure_.fault_storage), size, for_each_, flipped_.data());
      }
    }
    w_ = flipped_.data();
  }

  MapRow map(int64_t slice = 0) const {
    MapRow row;
    row.encoding = structure_.encoding;
    row.clip = structure_.encoding != Encoding::kWeight || device_.mapping_percentile > 0;
    if (structure_.weight_bits > 0) row.weight_steps = std::exp2(static_cast<float>(structure_.weight_bits - 1)) - 1.0f;
    if (device_.mapping_cell_bits > 0) row.level_steps = std::exp2(device_.mapping_cell_bits) - 1.0f;
    if (structure_.slice_bits > 0) {
      row.slice_steps = std::exp2(static_cast<float>(structure_.slice_bits)) - 1.0f;
      row.slice_divisor = std::exp2(static_cast<float>(structure_.slice_bits * slice));
    }
    row.floor = floor_;
    return row;
  }

  Floats stored_numbers(bool for_reading) {
    Floats values(static_cast<size_t>(rows_ * columns_));
    StoreRow pattern;
    pattern.model = structure_.disturbance;
    pattern.sigma = strength_ * device_.program_sigma;
    pattern.sigma_cycle = strength_ * device_.program_sigma_cycle;
    pattern.normalize = for_reading;
    const MapRow mapping = map();
    if (structure_.disturbance == Disturbance::kFunction) {
      for_rows(rows_, columns_, for_each_, [&](int64_t k) {
        kernels().map_row(mapping, w_ + k * columns_, scales_of(k), columns_, values.data() + k * columns_);
      });
      call_function(kProgram, values);
      for (int64_t k = 0; k < rows_ && !for_reading; ++k) {
        for (int64_t n = 0; n < columns_; ++n) values[static_cast<size_t>(k * columns_ + n)] *= scales_of(k)[n];
      }
      return values;
    }
    for_rows(rows_, columns_, for_each_, [&](int64_t k) {
      StoreRow row = pattern;
      row.device = counter(kProgram, 0, k);
      row.cycle = counter(kProgramCycle, key_.read_seed, k);
      const float* s = scales_of(k);
      const float* source = w_ + k * columns_;
      float* target = values.data() + k * columns_;
      if (mapped(mapping)) {
        kernels().map_row(mapping, source, s, columns_, target);
        for (int64_t n = 0; n < columns_; ++n) target[n] *= s[n];
        source = target;
      }
      kernels().store_row(row, source, s, 0, columns_, target);
    });
    return values;
  }

  // Puts what the registered function makes of targets in their place.
  void call_function(uint32_t stream, Floats& targets) const {
    Floats normals(targets.size());
    for_rows(rows_, columns_, for_each_, [&](int64_t k) {
      float* row = normals.data() + k * columns_;
      kernels().normals(counter(stream, 0, k), 0, columns_, row);
      for (int64_t n = 0; n < columns_; ++n) row[n] *= strength_;
    });
    Floats result(targets.size());
    for (int64_t m = 0; m < matrices_.count; ++m) {
      const int64_t first = m * matrices_.rows * columns_;
      call_program_function(structure_, device_, targets.data() + first, normals.data() + first, matrices_.rows,
                            columns_, result.data() + first);
    }
    targets = std::move(result);
  }

  uint32_t stream(uint32_t number, bool negative, int64_t slice) const {
    return number + (negative ? 1 : 0) + (static_cast<uint32_t>(slice) << 8);
  }

  // v of every slice, in units of g_max, and for reading the squares of its devices where noise grows with them; puts
  // the compensation into the scales.
  std::vector<Floats> stored_conductances(bool for_reading, std::vector<Floats>& squares) {
    const auto size = static_cast<size_t>(rows_ * columns_);
    const bool compensated = structure_.compensation != Compensation::kNone;
    std::vector<Floats> slices;
    Floats before(compensated ? size : 0, static_cast<float>(-decoding_.offset));
    Floats after = before;
    Floats squares_before;
    Floats squares_now;
    const bool by_device = has_noise_of_devices(structure_) && (for_reading || noisy_compensation(structure_));
    for (int64_t slice = 0; slice < structure_.slices(); ++slice) {
      const size_t first = slices.size();
      const float factor = decoding_.factors[first];
      Floats positive = programmed(slice, false);
      Floats negative = structure_.pairs() ? programmed(slice, true) : Floats();
      if (compensated) accumulate(factor, slice, positive, negative, before, by_device ? &squares_before : nullptr);
      std::vector<float> peaks;
      if (structure_.drift != Drift::kNone) {
        if (structure_.drift_pairs == DriftPairs::kNet) peaks = make_net_pairs(positive, negative);
        drift(slice, false, positive);
        if (structure_.pairs()) drift(slice, true, negative);
      }
      if (structure_.converts_apart()) {
        const Floats none;
        slices.push_back(read_conductances(slice, false, std::move(positive), none, peaks, nullptr));
        slices.push_back(read_conductances(slice, true, std::move(negative), none, peaks, nullptr));
      } else {
        slices.push_back(
            read_conductances(slice, false, std::move(positive), negative, peaks, by_device ? &squares_now : nullptr));
      }
      for (size_t part = first; compensated && part < slices.size(); ++part) {
        for_values([&](size_t i) { after[i] += decoding_.factors[part] * slices[part][i]; });
      }
      if (by_device && for_reading) squares.push_back(squares_now);
    }
    if (compensated) compensate(before, after, squares_before, squares_now);
    return slices;
  }

  // Calls body(i) for every element.
  template <typename Body>
  void for_values(Body&& body) const {
    for_rows(rows_, columns_, for_each_, [&](int64_t k) {
      const auto first = static_cast<size_t>(k * columns_);
      for (size_t i = first; i < first + static_cast<size_t>(columns_); ++i) body(i);
    });
  }

  // Adds what is read before drift.
  void accumulate(float factor, int64_t slice, const Floats& positive, const Floats& negative, Floats& sum,
                  Floats* squares) const {
    const bool struck = structure_.fault_source != FaultSource::kNone || structure_.ir_drop == IrDrop::kNetwork;
    if (!struck && structure_.pairs() && squares == nullptr) {  // without copies
      for_values([&](size_t i) { sum[i] += factor * (positive[i] - negative[i]); });
      return;
    }
    const Floats readings = read_conductances(slice, false, positive, negative, {}, squares);
    for_values([&](size_t i) { sum[i] += factor * readings[i]; });
  }

  // W' in the place of the first slice.
  void decode(std::vector<Floats>& slices) const {
    for_rows(rows_, columns_, for_each_, [&](int64_t k) {
      const float* s = scales_of(k);
      for (int64_t n = 0; n < columns_; ++n) {
        const auto i = static_cast<size_t>(k * columns_ + n);
        double weight = -decoding_.offset;
        for (size_t slice = 0; slice < slices.size(); ++slice) {
          weight += static_cast<double>(decoding_.factors[slice]) * slices[slice][i];
        }
        slices[0][i] = static_cast<float>(weight * s[n]);
      }
    });
    slices.resize(1);
  }

  template <typename Row>
  void clip(Row& row) const {
    if (structure_.program_clip == ProgramClip::kNone) row.lowest = -row.highest;
    if (structure_.program_clip == ProgramClip::kRange) {
      row.lowest = floor_;
      row.highest = 1.0f;
    }
  }

  ProgramRow program_pattern(std::vector<float>& levels, Curve& table) const {
    ProgramRow row;
    row.model = structure_.disturbance;
    row.sigma = strength_ * device_.program_sigma;
    row.sigma_cycle = strength_ * device_.program_sigma_cycle;
    row.sigma_off = strength_ * device_.program_sigma_off;
    row.floor = floor_;
    clip(row);
    const float amplitude = strength_ * device_.program_scale;
    if (row.model == Disturbance::kPolynomial) {
      const float c[] = {device_.program_c0, device_.program_c1, device_.program_c2, device_.program_c3,
                         device_.program_c4};
      for (int i = 0; i < 5; ++i) row.c[i] = amplitude * c[i] / device_.program_reference_us;
    } else if (row.model == Disturbance::kSaturating) {
      row.c[0] = amplitude * (device_.program_amplitude_na / device_.program_current_max_na);
      row.c[1] = device_.program_current_max_na / device_.program_knee_na;
    } else if (row.model == Disturbance::kLevelShared) {
      const MapRow mapping = map();
      row.level_steps = mapping.slice_steps > 0 ? mapping.slice_steps : mapping.level_steps;
      levels.resize(static_cast<size_t>(row.level_steps) + 1);
      const auto count = static_cast<int64_t>(levels.size());
      kernels().normals(counter(kLevels, 0, 0, count), 0, count, levels.data());
      for (float& level : levels) level = 1.0f + row.sigma * level;
      row.levels = levels.data();
    } else if (row.model == Disturbance::kTable) {
      table = table_now(amplitude);
      row.table = row_of(table);
    }
    return row;
  }

  // The table at program.time_s, in units of g_max, standard deviations times the amplitude.
  Curve table_now(float amplitude) const {
    const Table& all = device_.table;
    size_t late = 0;
    while (late < all.time_s.size() && all.time_s[late] < device_.program_time_s) ++late;
    const size_t early = late == 0 ? 0 : late - 1;
    if (late == all.time_s.size()) late = early;
    double share = 0;
    if (late > early) {
      share = std::log(static_cast<double>(device_.program_time_s) / all.time_s[early]) /
              std::log(static_cast<double>(all.time_s[late]) / all.time_s[early]);
    }
    Curve now;
    for (size_t i = 0; i < all.target_us.size(); ++i) {
      const auto between = [&](const std::vector<std::vector<float>>& values) {
        return (values[early][i] + share * (static_cast<double>(values[late][i]) - values[early][i])) /
               device_.mapping_g_max_us;
      };
      now.target.push_back(all.target_us[i] / device_.mapping_g_max_us);
      now.mean.push_back(static_cast<float>(between(all.mean_us)));
      now.std.push_back(static_cast<float>(between(all.std_us) * amplitude));
    }
    return now;
  }

  Floats programmed(int64_t slice, bool negative) const {
    Floats g(static_cast<size_t>(rows_ * columns_));
    std::vector<float> levels;
    Curve table;
    const ProgramRow pattern = program_pattern(levels, table);
    MapRow mapping = map(slice);
    mapping.negative = negative;
    const bool by_function = pattern.model == Disturbance::kFunction;
    for_rows(rows_, columns_, for_each_, [&](int64_t k) {
      float* target = g.data() + k * columns_;
      kernels().map_row(mapping, w_ + k * columns_, scales_of(k), columns_, target);
      if (pattern.model == Disturbance::kNone || by_function) return;
      ProgramRow row = pattern;
      row.device = counter(stream(kProgram, negative, slice), 0, k);
      row.cycle = counter(stream(kProgramCycle, negative, slice), key_.read_seed, k);
      row.second = counter(stream(kProgramSecond, negative, slice), 0, k);
      kernels().program_row(row, target, 0, columns_, target);
    });
    if (by_function) {
      call_function(stream(kProgram, negative, slice), g);
      for (float& value : g) value = std::min(std::max(value, pattern.lowest), pattern.highest);
    }
    return g;
  }

  // The cells beside the array that hold the weight 0, [rows].
  Floats unit_column(int64_t slice) const {
    Floats g(static_cast<size_t>(rows_));
    std::vector<float> levels;
    Curve table;
    const ProgramRow pattern = program_pattern(levels, table);
    Curve exponents;
    const DriftRow ageing = drift_pattern(exponents);
    StuckRow stuck = stuck_pattern();
    const MapRow mapping = map(slice);
    const float zero = 0;
    const float one = 1;
    float target = 0;
    kernels().map_row(mapping, &zero, &one, 1, &target);
    for (int64_t k = 0; k < rows_; ++k) {
      float& cell = g[static_cast<size_t>(k)];
      cell = target;
      const auto of_cell = [&](uint32_t number, uint32_t key1) {
        return counter(kUnitColumn + stream(number, false, slice), key1, k, 1);
      };
      if (pattern.model != Disturbance::kNone) {
        ProgramRow row = pattern;
        row.device = of_cell(kProgram, 0);
        row.cycle = of_cell(kProgramCycle, key_.read_seed);
        row.second = of_cell(kProgramSecond, 0);
        kernels().program_row(row, &cell, 0, 1, &cell);
      }
      if (ageing.model != Drift::kNone) {
        DriftRow row = ageing;
        row.drift = of_cell(kDrift, 0);
        row.read_noise = of_cell(kProgrammedRead, key_.read_seed);
        kernels().drift_row(row, &target, 0, 1, &cell);
      }
      if (structure_.stuck()) {
        stuck.stuck = of_cell(kStuck, 0);
        kernels().stick_row(stuck, 0, 1, &cell);
      }
    }
    through_wires(g, {{0, 1}}, 1);
    return g;
  }

  // Largest |value| of each tile, [row tiles][column tiles].
  std::vector<float> tile_peaks(const std::function<void(int64_t k, float* row)>& values_of) const {
    const size_t across = column_tiles_.size();
    std::vector<float> of_rows(static_cast<size_t>(rows_) * across);
    for_rows(rows_, columns_, for_each_, [&](int64_t k) {
      std::vector<float> row(static_cast<size_t>(columns_));
      values_of(k, row.data());
      for (size_t c = 0; c < across; ++c) {
        of_rows[static_cast<size_t>(k) * across + c] =
            kernels().largest_magnitude(row.data() + column_tiles_[c].begin, column_tiles_[c].size());
      }
    });
    std::vector<float> peaks(row_tiles_.size() * across, 0.0f);
    for (int64_t k = 0; k < rows_; ++k) {
      for (size_t c = 0; c < across; ++c) {
        float& peak = peaks[tile_of_row_[static_cast<size_t>(k)] * across + c];
        peak = std::max(peak, of_rows[static_cast<size_t>(k) * across + c]);
      }
    }
    return peaks;
  }

  // Maps the programmed difference of every pair to a pair again; gives the largest weight of each tile.
  std::vector<float> make_net_pairs(Floats& positive, Floats& negative) const {
    const float weight = 1.0f / range_;
    std::vector<float> peaks = tile_peaks([&](int64_t k, float* row) {
      for (int64_t n = 0; n < columns_; ++n)
        row[n] = (positive[k * columns_ + n] - negative[k * columns_ + n]) * weight;
    });
    for (float& peak : peaks) peak = std::max(peak, 1e-7f);
    for_rows(rows_, columns_, for_each_, [&](int64_t k) {
      for (size_t c = 0; c < column_tiles_.size(); ++c) {
        const float peak = peaks[tile_of_row_[static_cast<size_t>(k)] * column_tiles_.size() + c];
        for (int64_t n = column_tiles_[c].begin; n < column_tiles_[c].end; ++n) {
          const auto i = static_cast<size_t>(k * columns_ + n);
          const float u = (positive[i] - negative[i]) * weight / peak;
          positive[i] = floor_ + range_ * std::max(u, 0.0f);
          negative[i] = floor_ + range_ * std::max(-u, 0.0f);
        }
      }
    });
    return peaks;
  }

  // exponents: where the row's own are kept.
  DriftRow drift_pattern(Curve& exponents) const {
    const Device& of = device_;
    DriftRow pattern;
    pattern.model = structure_.drift;
    pattern.strength = strength_;
    pattern.scale = of.drift_scale;
    pattern.g_max_us = of.mapping_g_max_us;
    clip(pattern);
    const double time = of.drift_time_s;
    const double t0 = of.drift_t0_s;
    const double t_read = of.drift_t_read_s;
    // Low-frequency noise of the one reading that takes t_read.
    const auto read_at = [&](double since) {
      const double read = static_cast<double>(strength_) * of.drift_read_scale;
      return read * std::sqrt(std::log((since + t_read) / (2 * t_read)));
    };
    switch (pattern.model) {
      case Drift::kNone:
        break;
      case Drift::kPowerLaw:
        pattern.nu = of.drift_nu;
        pattern.nu_sigma = of.drift_nu_sigma;
        pattern.log_ratio = static_cast<float>(std::log(std::max(time, t0) / t0));
        break;
      case Drift::kPowerLawFit:
      case Drift::kPowerLawTable:
        pattern.log_ratio = static_cast<float>(std::log((time + t0) / t0));
        pattern.read = static_cast<float>(read_at(time + t0));
        pattern.mean_fit = {of.drift_nu_joint,  of.drift_nu_slope,
                            of.drift_nu_offset, of.drift_nu_low,
                            of.drift_nu_high,   {of.drift_nu_c0, of.drift_nu_c1, of.drift_nu_c2, of.drift_nu_c3}};
        pattern.spread_fit = {of.drift_nu_sigma_joint,
                              of.drift_nu_sigma_slope,
                              of.drift_nu_sigma_offset,
                              of.drift_nu_sigma_low,
                              of.drift_nu_sigma_high,
                              {of.drift_nu_sigma_c0, of.drift_nu_sigma_c1, of.drift_nu_sigma_c2, of.drift_nu_sigma_c3}};
        pattern.read_fit = {
            of.drift_read_joint,  of.drift_read_slope,
            of.drift_read_offset, of.drift_read_low,
            of.drift_read_high,   {of.drift_read_c0, of.drift_read_c1, of.drift_read_c2, of.drift_read_c3}};
        pattern.read_q = of.drift_read_q;
        pattern.read_power = of.drift_read_power;
        pattern.read_cap = of.drift_read_cap;
        exponents = of.exponents;
        for (float& target : exponents.target) target /= of.mapping_g_max_us;
        pattern.exponents = row_of(exponents);
        break;
      case Drift::kLogTime:
        if (time == 0) {
          pattern.model = Drift::kNone;
          break;
        }
        pattern.log_ratio = static_cast<float>(std::log(time / t0));
        pattern.shift_us = of.drift_shift_us * pattern.log_ratio * of.drift_scale;
        pattern.spread_us =
            strength_ * (of.drift_spread_us * pattern.log_ratio + of.drift_spread_t0_us) * of.drift_scale;
        pattern.read = static_cast<float>(read_at(time) * of.drift_read_us);
        break;
      case Drift::kRelaxation:
        pattern.final = of.drift_final_us / of.mapping_g_max_us;
        pattern.elapsed = static_cast<float>(time / of.drift_tau_s * of.drift_scale);
        pattern.nu_sigma = of.drift_tau_sigma;
        break;
    }
    return pattern;
  }

  StuckRow stuck_pattern() const {
    StuckRow stuck;
    stuck.low = std::min(1.0f, strength_ * device_.faults_stuck_low);
    stuck.high = std::min(1.0f, strength_ * device_.faults_stuck_high);
    stuck.floor = floor_;
    return stuck;
  }

  void drift(int64_t slice, bool negative, Floats& g) const {
    Curve exponents;
    const DriftRow pattern = drift_pattern(exponents);
    if (pattern.model == Drift::kNone) return;
    MapRow mapping = map(slice);
    mapping.negative = negative;
    for_rows(rows_, columns_, for_each_, [&](int64_t k) {
      Floats targets(static_cast<size_t>(columns_));
      DriftRow row = pattern;
      kernels().map_row(mapping, w_ + k * columns_, scales_of(k), columns_, targets.data());
      row.drift = counter(stream(kDrift, negative, slice), 0, k);
      row.read_noise = counter(stream(kProgrammedRead, negative, slice), key_.read_seed, k);
      kernels().drift_row(row, targets.data(), 0, columns_, g.data() + k * columns_);
    });
  }

  // Stuck cells and wires.
  void strike(int64_t slice, bool negative, Floats& g) const {
    if (structure_.stuck()) {
      const StuckRow pattern = stuck_pattern();
      for_rows(rows_, columns_, for_each_, [&](int64_t k) {
        StuckRow row = pattern;
        row.stuck = counter(stream(kStuck, negative, slice), 0, k);
        kernels().stick_row(row, 0, columns_, g.data() + k * columns_);
      });
    }
    for (const int64_t fault : key_.faults) {
      const int64_t what = fault % kFaultsPerElement - kFirstStuck;
      if (what < 0 || what / 2 != 2 * slice + (negative ? 1 : 0)) continue;
      g[static_cast<size_t>(fault / kFaultsPerElement)] = what % 2 == 1 ? 1.0f : floor_;
    }
    through_wires(g, column_tiles_, columns_);
  }

  void through_wires(Floats& g, const std::vector<Span>& column_tiles, int64_t columns) const {
    if (structure_.ir_drop != IrDrop::kNetwork || (device_.read_row_ohm == 0 && device_.read_column_ohm == 0)) return;
    const auto across = static_cast<int64_t>(column_tiles.size());
    for_each_(static_cast<int64_t>(row_tiles_.size()) * across, [&](int64_t tile) {
      const Span rows = row_tiles_[static_cast<size_t>(tile / across)];
      const Span span = column_tiles[static_cast<size_t>(tile % across)];
      Floats cells(static_cast<size_t>(rows.size() * span.size()));
      for (int64_t k = rows.begin; k < rows.end; ++k) {
        const float* row = g.data() + k * columns + span.begin;
        std::copy(row, row + span.size(), cells.data() + (k - rows.begin) * span.size());
      }
      const double g_max = static_cast<double>(device_.mapping_g_max_us) * 1e-6;
      effective_conductances(cells.data(), rows.size(), span.size(), 1.0 / (device_.read_row_ohm * g_max),
                             1.0 / (device_.read_column_ohm * g_max));
      for (int64_t k = rows.begin; k < rows.end; ++k) {
        const float* row = cells.data() + (k - rows.begin) * span.size();
        std::copy(row, row + span.size(), g.data() + k * columns + span.begin);
      }
    });
  }

  // What is read of the conductances: g+ - g-, or that of one device (is_negative: which of a pair) where negative is
  // empty; times the peak of each tile if there are peaks. squares, if given, becomes the same of the sum of g^2.
  Floats read_conductances(int64_t slice, bool is_negative, Floats positive, Floats negative,
                           const std::vector<float>& peaks, Floats* squares) const {
    const bool pair = !negative.empty();
    strike(slice, is_negative, positive);
    if (pair) strike(slice, true, negative);
    if (squares != nullptr) {
      squares->resize(positive.size());
      for_values([&](size_t i) {
        const float other = pair ? negative[i] : 0.0f;
        (*squares)[i] = positive[i] * positive[i] + other * other;
      });
    }
    if (pair) {
      for_values([&](size_t i) { positive[i] -= negative[i]; });
    }
    for (int64_t k = 0; k < rows_ && !peaks.empty(); ++k) {
      for (size_t c = 0; c < column_tiles_.size(); ++c) {
        const float peak = peaks[tile_of_row_[static_cast<size_t>(k)] * column_tiles_.size() + c];
        for (int64_t n = column_tiles_[c].begin; n < column_tiles_[c].end; ++n) {
          const auto i = static_cast<size_t>(k * columns_ + n);
          positive[i] *= peak;
          if (squares != nullptr) (*squares)[i] *= peak * peak;
        }
      }
    }
    return positive;
  }

  // Mean |reading| of each column of each row tile, summed, not divided: [row tiles][columns]. squares: of the devices
  // of the values, where noise grows with them.
  std::vector<double> reading_sums(const Floats& values, const Floats& squares, uint32_t stream) const {
    std::vector<double> sums(row_tiles_.size() * static_cast<size_t>(columns_), 0.0);
    const std::vector<float> ones(static_cast<size_t>(columns_), 1.0f);
    const bool noisy = noisy_compensation(structure_);
    ReadRow pattern;
    if (noisy && structure_.adc == Range::kFixed) {
      pattern.range = ReadRow::Range::kGiven;
      pattern.code = structure_.adc_code;
      pattern.steps = structure_.adc_steps(device_);
      // Readings are weights here, the range of the ADC is in units of g_max.
      pattern.low = -device_.adc_bound * decoding_.factors[0];
      pattern.high = device_.adc_bound * decoding_.factors[0];
    }
    const float output = structure_.output_noise() ? device_.read_output_noise : 0.0f;
    const float weight = structure_.read_noise != ReadNoise::kNone ? device_.read_weight_noise : 0.0f;
    const bool disturbed = noisy && strength_ * (output + weight) > 0;
    // Noise of devices is in units of g_max, of one slice.
    const float unit =
        structure_.read_noise == ReadNoise::kProportional || structure_.read_noise == ReadNoise::kIndependent
            ? decoding_.factors[0]
            : 1.0f;
    const float devices =
        structure_.read_noise == ReadNoise::kIndependent ? static_cast<float>(structure_.devices()) : 1.0f;
    const float variance = weight * weight * unit * unit * devices;
    pattern.scales = ones.data();
    for_each_(static_cast<int64_t>(row_tiles_.size()), [&](int64_t t) {
      std::vector<float> reading(static_cast<size_t>(columns_));
      std::vector<float> result(static_cast<size_t>(columns_));
      std::vector<float> std_each(static_cast<size_t>(needs_noise_weights(structure_) ? columns_ : 0));
      double* sum = sums.data() + t * columns_;
      for (int64_t k = row_tiles_[static_cast<size_t>(t)].begin; k < row_tiles_[static_cast<size_t>(t)].end; ++k) {
        const float* row = values.data() + k * columns_;
        std::copy(row, row + columns_, reading.begin());
        if (disturbed) {
          const Counter own = counter(stream, 0, k);
          NoiseRow noise{own.block, own.c1, strength_ * std::sqrt(output * output + variance), nullptr};
          if (!std_each.empty()) {
            if (squares.empty()) {
              noise_weights(structure_, row, columns_, std_each.data());
            } else {
              std::copy(squares.data() + k * columns_, squares.data() + (k + 1) * columns_, std_each.data());
            }
            kernels().noise_std(std_each.data(), variance, output * output, strength_, columns_, std_each.data());
            noise.std_each = std_each.data();
          }
          kernels().disturb_rows(own, 0, &noise, 1, columns_, reading.data(), nullptr);
        }
        kernels().read_row(pattern, reading.data(), columns_, result.data());
        for (int64_t n = 0; n < columns_; ++n) sum[n] += std::fabs(static_cast<double>(result[static_cast<size_t>(n)]));
      }
    });
    return sums;
  }

  void compensate(const Floats& before, const Floats& after, const Floats& squares_before,
                  const Floats& squares_after) {
    uncompensated_ = scales_;
    const std::vector<double> baseline = reading_sums(before, squares_before, kCompensationBaseline);
    const std::vector<double> reading = reading_sums(after, squares_after, kCompensationReading);
    const bool by_column =
        structure_.compensation == Compensation::kColumn || structure_.compensation == Compensation::kColumnExact;
    constexpr double kLeast = 1e-4;
    for (size_t t = 0; t < row_tiles_.size(); ++t) {
      const size_t first = t * static_cast<size_t>(columns_);
      const auto factor = [&](int64_t begin, int64_t end) {
        double b = 0;
        double c = 0;
        for (int64_t n = begin; n < end; ++n) {
          b += baseline[first + static_cast<size_t>(n)];
          c += reading[first + static_cast<size_t>(n)];
        }
        const double count = static_cast<double>(row_tiles_[t].size()) * static_cast<double>(end - begin);
        return static_cast<float>(std::max(b / count, kLeast) / std::max(c / count, kLeast));
      };
      for (const Span& span : column_tiles_) {
        const float shared = by_column ? 1.0f : factor(span.begin, span.end);
        for (int64_t n = span.begin; n < span.end; ++n) {
          scales_[first + static_cast<size_t>(n)] *= by_column ? factor(n, n + 1) : shared;
        }
      }
    }
  }

  // Adds noise in proportion to the largest weight of each tile.
  void modify(bool normalized, Floats& values) {
    if (uncompensated_.empty()) uncompensated_ = scales_;
    MapRow mapping = map();
    mapping.encoding = Encoding::kWeight;
    const std::vector<float> peaks = tile_peaks([&](int64_t k, float* row) {
      const size_t first = tile_of_row_[static_cast<size_t>(k)] * static_cast<size_t>(columns_);
      kernels().map_row(mapping, w_ + k * columns_, uncompensated_.data() + first, columns_, row);
    });
    const float unit = structure_.encoding == Encoding::kWeight ? 1.0f : range_;
    for_rows(rows_, columns_, for_each_, [&](int64_t k) {
      Floats noise(static_cast<size_t>(columns_));
      kernels().normals(counter(kModifier, 0, k), 0, columns_, noise.data());
      const float* s = scales_of(k);
      for (size_t c = 0; c < column_tiles_.size(); ++c) {
        const float peak = peaks[tile_of_row_[static_cast<size_t>(k)] * column_tiles_.size() + c];
        const float amplitude = strength_ * device_.program_modifier * peak * unit;
        for (int64_t n = column_tiles_[c].begin; n < column_tiles_[c].end; ++n) {
          values[static_cast<size_t>(k * columns_ + n)] +=
              amplitude * noise[static_cast<size_t>(n)] * (normalized ? 1.0f : s[n]);
        }
      }
    });
  }

  const Structure& structure_;
  const Device& device_;
  const StoreKey& key_;
  float strength_;
  int64_t rows_;
  int64_t columns_;
  const ForEach& for_each_;
  const Matrices& matrices_;
  const float* w_;  // after bit flips
  Floats flipped_;
  std::vector<float> scales_;
  std::vector<float> uncompensated_;  // scales before compensation, once they are needed
  std::vector<Span> row_tiles_;
  std::vector<Span> column_tiles_;
  std::vector<size_t> tile_of_row_;
  float floor_;
  float range_;
  Decoding decoding_;
};

}  // namespace

StoreKey store_key(const Structure& structure, const Device& device, float strength, uint32_t seed, uint32_t read_seed,
                   std::vector<int64_t> faults) {
  StoreKey key;
  const bool reads = noisy_compensation(structure);
  for (size_t i = 0; i < structure.entries.size(); ++i) {
    const Place& place = structure.places()[i];
    if (place.stored || (reads && place.of_readings)) key.numbers.push_back(device.values[i]);
  }
  key.strength = strength;
  key.seed = seed;
  key.faults = std::move(faults);
  // Programmed anew, or read anew after drift.
  const bool reads_drift = structure.drift == Drift::kPowerLawFit || structure.drift == Drift::kPowerLawTable ||
                           (structure.drift == Drift::kLogTime && device.drift_time_s > 0);
  if (device.program_sigma_cycle > 0 || (reads_drift && strength * device.drift_read_scale > 0)) {
    key.read_seed = read_seed;
  }
  return key;
}

bool stores_exactly(const Structure& structure, const Device& device, float strength) {
  if (structure.dynamic()) {
    // Clipping, moving and rounding act without noise too.
    if (structure.disturbance == Disturbance::kClipFormer || clips_operand(structure, device)) return false;
    if (structure.disturbance == Disturbance::kNone) return true;
    const bool noisy =
        strength * device.write_sigma != 0 || device.write_sigma_device != 0 || structure.sticks_operand();
    return !noisy && device.write_bits == 0 && !structure.moves_operand();
  }
  // A pair without variation holds p - m = W/s again, up to rounding: exact by definition.
  const bool quiet =
      structure.disturbance == Disturbance::kNone ||
      (structure.disturbance != Disturbance::kTable && structure.disturbance != Disturbance::kFunction &&
       (structure.disturbance == Disturbance::kPolynomial || structure.disturbance == Disturbance::kSaturating
            ? device.program_scale == 0
            : device.program_sigma == 0 && device.program_sigma_cycle == 0 && device.program_sigma_off == 0));
  const bool faulty = structure.fault_source != FaultSource::kNone;
  return quiet && !faulty && structure.weight_bits == 0 && device.mapping_cell_bits == 0 &&
         device.mapping_percentile == 0 && structure.drift == Drift::kNone && structure.ir_drop != IrDrop::kNetwork &&
         device.program_modifier == 0;
}

namespace {

// A value may be out of all proportion, and would leave no digits to its column.
bool is_unbounded(const Structure& structure) {
  return (structure.fault_storage != FaultStorage::kNone && structure.fault_storage != FaultStorage::kInt) ||
         structure.disturbance == Disturbance::kFunction;
}

}  // namespace

const Packing& packing_for(const Structure& structure, const Device& device, int64_t rows, bool for_reading) {
  const Kernels& table = kernels();
  if (!for_reading || table.fixed_packing == nullptr || structure.dac_slice_bits > 0) return *table.float_packing;
  // 256 steps have one code more than bytes hold, which costs a product of its own where a row has both ends: rare,
  // unless inputs are clipped to them.
  const double steps = structure.dac_steps(device);
  const bool clipped = structure.dac != InputRange::kAbsmax || device.dac_limit > 0;
  const bool codes = steps > 0 && steps <= (clipped ? 254 : 256) && std::fmod(steps, 2.0) == 0;
  const bool squares_of_codes = steps <= 254 && &noise_packing_for(structure, rows) == table.variance_packing;
  const bool more_than_codes = (structure.input_noise() && device.read_input_noise > 0) ||
                               (needs_noise_weights(structure) && !squares_of_codes) ||
                               structure.ir_drop == IrDrop::kFormula ||
                               structure.dac_rounding == DacRounding::kStochastic || device.dac_asymmetry != 0 ||
                               decoding(structure, device).offset != 0;
  const bool too_deep = structure.row_tiles(rows)[0].size() > table.deepest_fixed;
  return codes && !more_than_codes && !is_unbounded(structure) && !too_deep ? *table.fixed_packing
                                                                            : *table.float_packing;
}

const Packing& noise_packing_for(const Structure& structure, int64_t rows) {
  const Kernels& table = kernels();
  // What is written at run time grows, and its steps would grow with it; sums of slices have squares of their own.
  const bool plain = !structure.dynamic() && structure.dac_slice_sum == DacSliceSum::kDigital;
  if (!plain || is_unbounded(structure)) return *table.float_packing;
  const bool bytes = table.variance_packing != nullptr && structure.row_tiles(rows)[0].size() <= table.deepest_fixed;
  return bytes ? *table.variance_packing : *table.rounded_packing;
}

bool reads_narrow(const Structure& structure, const Device& device, int64_t rows, int64_t columns) {
  const bool few = columns <= kMostNarrow && columns > 0 && rows <= kDeepestNarrow &&
                   structure.row_tiles(rows).size() == 1 && structure.column_groups(columns).size() == 1;
  const bool one_reading = structure.slices() == 1 && !structure.converts_apart() && structure.dac_slice_bits == 0 &&
                           structure.bound_management == BoundManagement::kNone;
  const bool plain = !(structure.input_noise() && device.read_input_noise > 0) && !needs_noise_weights(structure) &&
                     structure.ir_drop != IrDrop::kFormula && structure.dac_rounding == DacRounding::kNearest &&
                     structure.adc_rounding == AdcRounding::kNearest && device.dac_asymmetry == 0 &&
                     !structure.shaped_outputs(device) && structure.dac != InputRange::kMax &&
                     structure.dac != InputRange::kAbsmaxSum && decoding(structure, device).offset == 0;
  return !structure.window.empty() && few && one_reading && plain;
}

BlockLayout::BlockLayout(const Packing& packing, const std::vector<Span>& row_tiles,
                         const std::vector<Span>& column_groups, int64_t matrices)
    : groups_(column_groups.size()) {
  for (const Span& tile : row_tiles) {
    for (const Span& group : column_groups) {
      offsets_.push_back(size_);
      size_ += matrices * packing.size(tile.size(), group.size());
    }
  }
}

namespace {

// Values [matrices, rows, columns] in the layout of their tiles.
void pack_tiles(const Packing& packing, const float* values, int64_t matrices, int64_t all_rows,
                const std::vector<Span>& row_tiles, const std::vector<Span>& column_groups, int64_t columns,
                const ForEach& for_each, float* out) {
  const BlockLayout layout(packing, row_tiles, column_groups, matrices);
  const int64_t panel = packing.panel_columns;
  struct Part {
    const float* from;
    int64_t rows;
    int64_t columns;
    float* to;
  };
  std::vector<Part> parts;
  for (size_t t = 0; t < row_tiles.size(); ++t) {
    const int64_t rows = row_tiles[t].size();
    const int64_t width = std::max<int64_t>(1, (int64_t{1} << 16) / std::max<int64_t>(1, rows * panel)) * panel;
    for (size_t g = 0; g < column_groups.size(); ++g) {
      const Span group = column_groups[g];
      for (int64_t m = 0; m < matrices; ++m) {
        const float* from = values + (m * all_rows + row_tiles[t].begin) * columns + group.begin;
        float* to = out + layout.offset(t, g) + m * packing.size(rows, group.size());
        for (int64_t first = 0; first < group.size(); first += width) {
          parts.push_back({from + first, rows, std::min(width, group.size() - first), to + packing.size(rows, first)});
        }
      }
    }
  }
  // A stack may have thousands of small matrices.
  const auto count = static_cast<int64_t>(parts.size());
  const int64_t at_once = std::max<int64_t>(1, count / 64);
  for_each((count + at_once - 1) / at_once, [&](int64_t task) {
    for (int64_t i = task * at_once; i < std::min(count, (task + 1) * at_once); ++i) {
      const Part& part = parts[static_cast<size_t>(i)];
      packing.pack(part.from, columns, part.rows, part.columns, part.to);
    }
  });
}

int64_t columns_size(int64_t depth, int64_t columns) { return depth * columns; }

void pack_columns(const float* b, int64_t stride, int64_t depth, int64_t columns, float* out) {
  transpose(b, stride, depth, columns, out, depth);
}

}  // namespace

const Packing& column_packing() {
  static const Packing packing = {1, columns_size, pack_columns};
  return packing;
}

Floats pack_whole(const Packing& packing, const float* values, int64_t matrices, int64_t rows, int64_t columns,
                  const ForEach& for_each) {
  Floats packed(static_cast<size_t>(matrices * packing.size(rows, columns)));
  pack_tiles(packing, values, matrices, rows, {{0, rows}}, {{0, columns}}, columns, for_each, packed.data());
  return packed;
}

void pack_array(const Structure& structure, const Packing& packing, int64_t matrices, int64_t rows, int64_t columns,
                bool for_reading, const ForEach& for_each, StoredArray& array) {
  array.packing = &packing;
  if (!for_reading) {
    array.slices[0] = pack_whole(packing, array.slices[0].data(), matrices, rows, columns, for_each);
    return;
  }
  const std::vector<Span> row_tiles = structure.row_tiles(rows);
  const std::vector<Span> groups = structure.column_groups(columns);
  const auto pack = [&](const Packing& as, Floats& values) {
    Floats packed(static_cast<size_t>(BlockLayout(as, row_tiles, groups, matrices).size()));
    pack_tiles(as, values.data(), matrices, rows, row_tiles, groups, columns, for_each, packed.data());
    values = std::move(packed);
  };
  for (Floats& values : array.noise_weights) pack(noise_packing_for(structure, rows), values);
  for (Floats& slice : array.slices) {
    pack(packing, slice);
    const auto size = static_cast<int64_t>(slice.size());
    if (structure.ir_drop == IrDrop::kFormula) {
      array.magnitudes.emplace_back(slice.size());
      kernels().absolute(slice.data(), size, array.magnitudes.back().data());
    }
  }
}

namespace {

Decoding decoding_of_pairs(const Structure& structure, const Device& device) {
  const double floor = device.floor();
  const double range = 1.0 - floor;
  Decoding result;
  if (structure.dynamic()) {
    const bool pairs = structure.disturbance == Disturbance::kClipFormer ||
                       structure.disturbance == Disturbance::kLognormalConductance;
    result.factors = {pairs ? static_cast<float>(1.0 / range) : 1.0f};
  } else if (structure.encoding == Encoding::kWeight) {
    result.factors = {1.0f};
  } else if (structure.slice_bits > 0) {
    const double largest_digit = std::exp2(static_cast<double>(structure.slice_bits)) - 1;
    const double largest_code = std::exp2(static_cast<double>(structure.weight_bits - 1)) - 1;
    const int64_t middle = int64_t{1} << (structure.weight_bits - 1);
    for (int64_t i = 0; i < structure.slices(); ++i) {
      const int64_t shift = i * structure.slice_bits;
      const double factor = std::exp2(static_cast<double>(shift)) * largest_digit / (largest_code * range);
      result.factors.push_back(static_cast<float>(factor));
      const auto digit = static_cast<double>((middle >> shift) & static_cast<int64_t>(largest_digit));
      if (structure.encoding == Encoding::kOffset) result.offset += factor * (floor + range * digit / largest_digit);
    }
  } else if (structure.encoding == Encoding::kOffset) {
    const double levels = std::exp2(static_cast<double>(device.mapping_cell_bits)) - 1;
    const double used = device.mapping_cell_bits > 0 ? range * (levels - 1) / levels : range;
    result.factors = {static_cast<float>(2.0 / range)};
    result.offset = (1.0 - used / 2) * 2.0 / range;
  } else {
    result.factors = {static_cast<float>(1.0 / range)};
  }
  return result;
}

}  // namespace

Decoding decoding(const Structure& structure, const Device& device) {
  Decoding result = decoding_of_pairs(structure, device);
  if (!structure.converts_apart()) return result;
  std::vector<float> of_devices;
  for (const float factor : result.factors) {
    of_devices.push_back(factor);
    of_devices.push_back(-factor);
  }
  result.factors = of_devices;
  return result;
}

void check_faults(const Structure& structure, const Matrices& w, const std::vector<int64_t>& faults) {
  const int64_t bits = structure.fault_storage == FaultStorage::kNone ? 0 : structure.stored_bits();
  const int64_t devices = structure.encoding == Encoding::kWeight ? 0 : structure.pairs() ? 2 : 1;
  for (const int64_t fault : faults) {
    const int64_t element = fault / kFaultsPerElement;
    const int64_t what = fault % kFaultsPerElement;
    const int64_t device = what - kFirstStuck;
    const bool exists = what < kFirstStuck ? what < bits : device / 4 < structure.slices() && device / 2 % 2 < devices;
    if (fault < 0 || element >= w.count * w.rows * w.columns || !exists) {
      throw Error("node '" + structure.node + "', input 'faults': " + std::to_string(fault) +
                  " names an element, bit or device that the array does not have");
    }
  }
}

bool has_noise_of_devices(const Structure& structure) {
  return structure.read_noise == ReadNoise::kProportional && structure.devices() > 0 && !structure.converts_apart();
}

bool needs_noise_weights(const Structure& structure) {
  return structure.read_noise == ReadNoise::kPcmRead || structure.read_noise == ReadNoise::kProportional;
}

void noise_weights(const Structure& structure, const float* values, int64_t count, float* out) {
  if (structure.read_noise == ReadNoise::kProportional) {
    kernels().square(values, count, out);
  } else {
    kernels().absolute(values, count, out);
  }
}

StoredArray store_array(const Structure& structure, const Device& device, const StoreKey& key, const Matrices& w,
                        bool for_reading, const ForEach& for_each) {
  return Storing(structure, device, key, w, for_each).run(for_reading);
}

void write_operand(const Structure& structure, const Device& device, float strength, const float* b, int64_t columns,
                   const Span& rows, const float* scales, bool for_reading, const OperandPlace& place, float* out,
                   float* squares) {
  StoreRow row;
  row.model = structure.disturbance;
  row.sigma = strength * device.write_sigma;
  row.floor = device.floor();
  row.normalize = for_reading;
  if (row.model != Disturbance::kNone) {
    row.sigma_device = strength * device.write_sigma_device;
    row.stuck_low = std::min(1.0f, strength * device.write_stuck_low);
    row.stuck_high = std::min(1.0f, strength * device.write_stuck_high);
    row.moved = structure.moves_operand();
    row.alpha = structure.alpha(device);
    row.beta = structure.beta(device);
    if (device.write_bits > 0) row.write_steps = std::exp2(device.write_bits) - 1.0f;
  }
  if (row.model == Disturbance::kClipFormer) {
    row.sigma *= device.write_gamma;
    row.sigma_device *= device.write_gamma;
    row.exponent = device.write_exponent;
    row.cells = structure.write_cells == WriteCells::kCells;
  }
  row.device.key0 = place.key.key0;
  row.device.key1 = place.key.key1;
  row.device.c2 = static_cast<uint32_t>(structure.site) + (place.matrix << 16);
  row.device.c3 = kWrite;
  row.cells_counter.key0 = place.seed;
  row.cells_counter.c2 = row.device.c2;
  // Cells that are taken again begin a stretch of columns, or of rows.
  const auto capacity = static_cast<int64_t>(device.write_capacity);
  const bool by_rows = capacity > 0 && structure.key_axis == KeyAxis::kRows;
  const bool by_columns = capacity > 0 && structure.key_axis == KeyAxis::kColumns;
  const MapRow clipping;  // of numbers to their scale
  for (int64_t k = rows.begin; k < rows.end; ++k) {
    const float* source = b + k * columns;
    float* target = out + k * columns;
    if (clips_operand(structure, device)) {
      kernels().map_row(clipping, source, scales, columns, target);
      for (int64_t n = 0; n < columns; ++n) target[n] *= scales[n];
      source = target;
    }
    row.device.c1 = static_cast<uint32_t>(place.first_row + k);
    row.cells_counter.c1 = by_rows ? row.device.c1 % static_cast<uint32_t>(capacity) : row.device.c1;
    for (int64_t n = 0; n < columns;) {
      const int64_t first = place.first_column + n;
      const int64_t count = by_columns ? std::min(columns - n, capacity - first % capacity) : columns;
      row.cell_shift = by_columns ? first % capacity - first : 0;
      if (squares != nullptr) row.squares = squares + k * columns + n;
      kernels().store_row(row, source + n, scales + n, first, count, target + n);
      n += count;
    }
  }
}

}  // namespace emu
