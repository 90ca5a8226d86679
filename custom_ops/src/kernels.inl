// The loops of kernels.h on the lanes of lanes.h, by the laws of laws.h. Included once by each
// kernels_<instruction set>.cpp.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels.h"
#include "lanes.h"
//
#include "laws.h"

namespace emu {
namespace {

// NOLINTBEGIN(google-build-using-namespace): this file is the body of one instruction set's translation unit.
using namespace lanes;
using namespace laws;

#include "normals.inl"

constexpr int64_t kChunk = 256;  // normals kept on the stack between generation and use
static_assert(kChunk % (kGroupsAtOnce * kNormalsAtOnce) == 0, "a chunk is a whole number of vector steps");

void words(const Counter& counter, int64_t count, uint32_t* out) {
  const RoundKeys keys(counter);
  for (int64_t done = 0; done < count; done += kBlocksAtOnce) {
    I words02;
    I words13;
    philox_lanes<1>(counter, keys, Blocks<1>::of_row(counter, counter.block + static_cast<uint64_t>(done)), &words02,
                    &words13);
    uint32_t buffer[4 * kBlocksAtOnce];
    store_ints(buffer, unpack_low(words02, words13));
    store_ints(buffer + 2 * kBlocksAtOnce, unpack_high(words02, words13));
    const int64_t blocks = std::min<int64_t>(kBlocksAtOnce, count - done);
    std::copy(buffer, buffer + 4 * blocks, out + 4 * done);
  }
}

// Calls step(i) for whole vectors and tail(i) for the elements after them.
template <typename Step, typename Tail>
inline void for_each_lane(int64_t count, Step&& step, Tail&& tail) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) step(i);
  for (; i < count; ++i) tail(i);
}

// Applies map(F...) -> F element by element, the tail in a vector of its own, so that every element sees the same
// arithmetic.
template <typename Map, typename... Inputs>
inline void map_lanes(int64_t count, float* out, Map&& map, const Inputs*... inputs) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(out + i, map(load(inputs + i)...));
  if (i < count) store_some(out + i, count - i, map(load_some(inputs + i, count - i)...));
}

// One step of for_each_random: 2 * kGroups lanes from a block on.
template <template <int> class Make, int kGroups, typename Take>
inline void take_lanes(const Counter& counter, const RoundKeys& keys, uint64_t& block, int64_t& done, int64_t count,
                       Take&& take) {
  F lanes[2 * kGroups];
  Make<kGroups>::run(counter, keys, block, lanes);
  if (count - done >= 2 * kGroups * kWidth) {
    for (int i = 0; i < 2 * kGroups; ++i) take(done + i * kWidth, All(), lanes[i]);
  } else {
    for (int i = 0; done + i * kWidth < count; ++i) {
      take(done + i * kWidth, std::min<int64_t>(kWidth, count - done - i * kWidth), lanes[i]);
    }
  }
  done += 2 * kGroups * kWidth;
  block += kGroups * kBlocksAtOnce;
}

// Hands columns [first_column, first_column + count) of the row that begins at counter.block to take(i, some, lane):
// the first `some` of a lane are those of columns from first_column + i on.
template <template <int> class Make, typename Take>
inline void for_each_random(const Counter& counter, int64_t first_column, int64_t count, Take&& take) {
  const RoundKeys keys(counter);
  uint64_t block = counter.block + static_cast<uint64_t>(first_column / 4);
  const int64_t skip = first_column % 4;
  int64_t done = 0;
  if (skip > 0) {  // inside a block
    F lanes[2];
    Make<1>::run(counter, keys, block, lanes);
    float values[kNormalsAtOnce];
    store(values, lanes[0]);
    store(values + kWidth, lanes[1]);
    const int64_t part = std::min<int64_t>(4 - skip, count);
    take(0, part, load_some(values + skip, part));
    done = part;
    ++block;
  }
  while (count - done >= kGroupsAtOnce * kNormalsAtOnce) {
    take_lanes<Make, kGroupsAtOnce>(counter, keys, block, done, count, take);
  }
  if (kGroupsAtOnce > 2 && count - done > kNormalsAtOnce) take_lanes<Make, 2>(counter, keys, block, done, count, take);
  while (done < count) take_lanes<Make, 1>(counter, keys, block, done, count, take);
}

template <template <int> class Make>
inline void fill_row(const Counter& counter, int64_t first_column, int64_t count, float* out) {
  for_each_random<Make>(counter, first_column, count,
                        [&](int64_t i, auto some, F lane) { store_some(out + i, some, lane); });
}

template <int kGroups>
struct MakeNormals {
  static void run(const Counter& counter, const RoundKeys& keys, uint64_t block, F* lanes) {
    lanes_of_normals<kGroups>(counter, keys, Blocks<kGroups>::of_row(counter, block), lanes);
  }
};

// u = ((x >> 8) + 1) 2^-24 of one word each.
template <int kGroups>
struct MakeUniforms {
  static void run(const Counter& counter, const RoundKeys& keys, uint64_t block, F* lanes) {
    I words02[kGroups];
    I words13[kGroups];
    philox_lanes<kGroups>(counter, keys, Blocks<kGroups>::of_row(counter, block), words02, words13);
    const auto uniform = [](I words) {
      return multiply(to_float(add_int(shift_right<8>(words), set_int(1))), set(5.9604644775390625e-8f));
    };
    for (int g = 0; g < kGroups; ++g) {
      lanes[2 * g] = uniform(unpack_low(words02[g], words13[g]));
      lanes[2 * g + 1] = uniform(unpack_high(words02[g], words13[g]));
    }
  }
};

void normals(const Counter& counter, int64_t first_column, int64_t count, float* out) {
  fill_row<MakeNormals>(counter, first_column, count, out);
}

void uniforms(const Counter& counter, int64_t first_column, int64_t count, float* out) {
  fill_row<MakeUniforms>(counter, first_column, count, out);
}

// theta of one chunk: sigma N + sigma_cycle N'.
template <typename Row>
void chunk_theta(const Row& row, uint32_t stream_offset, int64_t first_column, int64_t count, float* theta) {
  Counter device = row.device;
  device.c3 += stream_offset;
  normals(device, first_column, count, theta);
  const F sigma = set(row.sigma);
  if (row.sigma_cycle == 0) {
    map_lanes(count, theta, [&](F n) { return multiply(sigma, n); }, theta);
    return;
  }
  float cycle_normals[kChunk];
  Counter cycle = row.cycle;
  cycle.c3 += stream_offset;
  normals(cycle, first_column, count, cycle_normals);
  const F sigma_cycle = set(row.sigma_cycle);
  map_lanes(
      count, theta, [&](F n, F m) { return multiply_add(sigma_cycle, m, multiply(sigma, n)); }, theta, cycle_normals);
}

// The same with uniforms on (-1/2, 1/2].
void chunk_uniform_theta(const ProgramRow& row, int64_t first_column, int64_t count, float* theta) {
  const F half = set(0.5f);
  uniforms(row.device, first_column, count, theta);
  const F sigma = set(row.sigma);
  map_lanes(count, theta, [&](F u) { return multiply(sigma, subtract(u, half)); }, theta);
  if (row.sigma_cycle == 0) return;
  float cycle[kChunk];
  uniforms(row.cycle, first_column, count, cycle);
  const F sigma_cycle = set(row.sigma_cycle);
  map_lanes(count, theta, [&](F t, F u) { return multiply_add(sigma_cycle, subtract(u, half), t); }, theta, cycle);
}

void map_row(const MapRow& row, const float* w, const float* scales, int64_t count, float* out) {
  const Targets targets(row);
  switch (row.encoding) {
    case Encoding::kWeight:
      return map_lanes(count, out, [&](F v, F s) { return targets.of<Encoding::kWeight>(v, s); }, w, scales);
    case Encoding::kDifferential:
      return map_lanes(count, out, [&](F v, F s) { return targets.of<Encoding::kDifferential>(v, s); }, w, scales);
    case Encoding::kTwoSided:
      return map_lanes(count, out, [&](F v, F s) { return targets.of<Encoding::kTwoSided>(v, s); }, w, scales);
    case Encoding::kOffset:
      return map_lanes(count, out, [&](F v, F s) { return targets.of<Encoding::kOffset>(v, s); }, w, scales);
  }
}

void store_row(const StoreRow& row, const float* w, const float* scales, int64_t first_column, int64_t count,
               float* out) {
  const bool pair = row.model == Disturbance::kLognormalConductance || row.model == Disturbance::kClipFormer;
  const bool quiet = row.model == Disturbance::kNone || (row.sigma == 0 && row.sigma_cycle == 0 && !pair);
  const float variance = row.sigma * row.sigma + row.sigma_cycle * row.sigma_cycle;
  const F mean_shift = set(row.model == Disturbance::kLognormalMeanCorrected ? -0.5f * variance : 0.0f);
  for (int64_t start = 0; start < count; start += kChunk) {
    const int64_t part = std::min(kChunk, count - start);
    const float* values = w + start;
    const float* s = scales + start;
    float* target = out + start;
    const F zero = set(0.0f);
    const F inverse_range = set(1.0f / (1.0f - row.floor));
    float moved[kChunk];
    if (!pair && (row.moved || row.write_steps > 0)) {  // to what a pair would hold
      const WrittenTarget g(row);
      map_lanes(
          part, moved,
          [&](F v, F scale) {
            const F u = divide(v, scale);
            return multiply(scale, multiply(subtract(g(u), g(subtract(zero, u))), inverse_range));
          },
          values, s);
      values = moved;
    }
    float theta[kChunk];
    if (!quiet) chunk_theta(row, 0, first_column + start, part, theta);
    if (quiet) {
      std::copy(values, values + part, target);
    } else if (row.model == Disturbance::kLognormal || row.model == Disturbance::kLognormalMeanCorrected) {
      map_lanes(part, target, [&](F v, F t) { return lognormal(v, add(t, mean_shift)); }, values, theta);
    } else if (row.model == Disturbance::kGaussProportional) {
      map_lanes(part, target, [&](F v, F t) { return proportional(v, t); }, values, theta);
    } else if (row.model == Disturbance::kGaussRange) {
      map_lanes(part, target, [&](F v, F t, F scale) { return in_scale(v, t, scale); }, values, theta, s);
    } else {
      float theta_negative[kChunk];
      float unit[kChunk];
      chunk_theta(row, 1, first_column + start, part, theta_negative);
      map_lanes(part, unit, [](F v, F scale) { return divide(v, scale); }, values, s);
      // What a pair reads, of one law for its two devices.
      const auto write_pair = [&](auto&& law) {
        if (row.squares != nullptr) {
          map_lanes(
              part, row.squares + start,
              [&](F u, F positive, F negative) {
                const F plus = law(u, positive);
                const F minus = law(subtract(zero, u), negative);
                return multiply_add(plus, plus, multiply(minus, minus));
              },
              unit, theta, theta_negative);
        }
        map_lanes(
            part, unit,
            [&](F u, F positive, F negative) { return subtract(law(u, positive), law(subtract(zero, u), negative)); },
            unit, theta, theta_negative);
      };
      if (row.model == Disturbance::kLognormalConductance) {
        const WrittenTarget g(row);
        write_pair([&](F u, F t) { return lognormal(g(u), t); });
      } else {
        write_pair(ClipFormer(row));
      }
      if (row.normalize) {
        std::copy(unit, unit + part, target);
      } else {
        map_lanes(part, target, [&](F v, F scale) { return multiply(scale, multiply(v, inverse_range)); }, unit, s);
      }
    }
    if (row.normalize && !pair) map_lanes(part, target, [](F v, F scale) { return divide(v, scale); }, target, s);
  }
}

void theta_row(const ProgramRow& row, int64_t first_column, int64_t count, float* out) {
  for (int64_t start = 0; start < count; start += kChunk) {
    chunk_theta(row, 0, first_column + start, std::min(kChunk, count - start), out + start);
  }
}

// What a curve says of x; only ever its ends outside of them.
inline void look_up(const CurveRow& curve, float x, float& mean, float& std) {
  const int64_t next = std::upper_bound(curve.target, curve.target + curve.points, x) - curve.target;
  const int64_t last = std::min<int64_t>(next, curve.points - 1);
  mean = curve.mean[last];
  std = curve.std[last];
  if (next == 0 || next == curve.points) return;
  const float share = (x - curve.target[next - 1]) / (curve.target[next] - curve.target[next - 1]);
  mean = curve.mean[next - 1] + share * (mean - curve.mean[next - 1]);
  std = curve.std[next - 1] + share * (std - curve.std[next - 1]);
}

void program_row(const ProgramRow& row, const float* targets, int64_t first_column, int64_t count, float* out) {
  const F lowest = set(row.lowest);
  const F highest = set(row.highest);
  for (int64_t start = 0; start < count; start += kChunk) {
    const int64_t part = std::min(kChunk, count - start);
    const float* g = targets + start;
    float* result = out + start;
    float noise[kChunk];
    switch (row.model) {
      case Disturbance::kUniformIndependent:
      case Disturbance::kUniformProportional:
      case Disturbance::kUniformInverse:
        chunk_uniform_theta(row, first_column + start, part, noise);
        break;
      case Disturbance::kPolynomial:
      case Disturbance::kSaturating:
      case Disturbance::kTable:
      case Disturbance::kResistanceRange:
        normals(row.device, first_column + start, part, noise);
        break;
      case Disturbance::kLevelShared:
        break;
      default:
        chunk_theta(row, 0, first_column + start, part, noise);
    }
    const auto program = [&](auto&& law, const auto*... more) {
      map_lanes(
          part, result, [&](F v, auto... drawn) { return clamp(law(v, drawn...), lowest, highest); }, g,
          static_cast<const float*>(noise), more...);
    };
    switch (row.model) {
      case Disturbance::kLognormalConductance:
        program([](F v, F theta) { return lognormal(v, theta); });
        break;
      case Disturbance::kNormalIndependent:
      case Disturbance::kUniformIndependent:
        program([](F v, F theta) { return independent(v, theta); });
        break;
      case Disturbance::kNormalProportional:
      case Disturbance::kUniformProportional:
        program([](F v, F theta) { return proportional(v, theta); });
        break;
      case Disturbance::kNormalInverse:
      case Disturbance::kUniformInverse:
        program([](F v, F theta) { return inverse(v, theta); });
        break;
      case Disturbance::kPolynomial: {
        const Polynomial<5> std(row.c);
        program([&](F v, F n) { return spread(v, n, std(v)); });
        break;
      }
      case Disturbance::kSaturating: {
        const Saturating std(row.c[0], row.c[1]);
        program([&](F v, F n) { return spread(v, n, std(v)); });
        break;
      }
      case Disturbance::kLevelShared:
        for (int64_t i = 0; i < part; ++i) {
          const float level = (g[i] - row.floor) / (1.0f - row.floor) * row.level_steps + 0.5f;
          noise[i] = row.levels[level > 0 ? static_cast<int64_t>(level) : 0];  // also where it is no number
        }
        program([](F v, F factor) { return by_level(v, factor); });
        break;
      case Disturbance::kResistanceRange: {
        float second[kChunk];
        normals(row.second, first_column + start, part, second);
        program(ResistanceRange(row), second);
        break;
      }
      case Disturbance::kTable:
        for (int64_t i = 0; i < part; ++i) {
          float std = 0;
          look_up(row.table, g[i], result[i], std);
          noise[i] *= std;
        }
        g = result;
        program([](F mean, F deviation) { return independent(mean, deviation); });
        break;
      default:
        std::copy(g, g + part, result);
    }
  }
}

// Calls body(whether a fit has a joint, law of a reading's noise).
template <typename Body>
inline void with_fits(const DriftRow& row, Body&& body) {
  if (row.read_q > 0) {
    body(std::true_type(), PowerNoise(row));
  } else if (row.mean_fit.joint > 0 || row.spread_fit.joint > 0 || row.read_fit.joint > 0) {
    body(std::true_type(), FittedNoise<true>(row));
  } else {
    body(std::false_type(), FittedNoise<false>(row));
  }
}

void drift_row(const DriftRow& row, const float* targets, int64_t first_column, int64_t count, float* g) {
  const F lowest = set(row.lowest);
  const F highest = set(row.highest);
  const PowerLaw power_law(row);
  const bool is_read = row.model != Drift::kPowerLaw && row.model != Drift::kRelaxation;
  for (int64_t start = 0; start < count; start += kChunk) {
    const int64_t part = std::min(kChunk, count - start);
    float* values = g + start;
    float drift[kChunk];
    float noise[kChunk];
    normals(row.drift, first_column + start, part, drift);
    if (is_read) normals(row.read_noise, first_column + start, part, noise);
    const auto change = [&](auto&& law, const auto*... more) {
      map_lanes(
          part, values, [&](F v, auto... drawn) { return clamp(law(v, drawn...), lowest, highest); }, values,
          static_cast<const float*>(drift), more...);
    };
    switch (row.model) {
      case Drift::kNone:
        break;
      case Drift::kPowerLaw: {
        const F mean = set(row.nu);
        const F deviation = set(row.strength * row.nu_sigma);
        change([&](F v, F n) { return power_law.after(v, multiply_add(deviation, n, mean)); });
        break;
      }
      case Drift::kPowerLawFit:
        with_fits(row, [&](auto joint, auto&& relative) {
          const Fitted<joint.value> mean(row.mean_fit);
          const Fitted<joint.value> deviation(row.spread_fit);
          change(
              [&](F v, F n, F r, F target) {
                const F x = maximum(target, set(kLeastConductance));
                const F ln = mean.logarithm_of(x);
                return power_law.read_after(v, mean(x, ln), deviation(x, ln), n, relative(v), r);
              },
              noise, targets + start);
        });
        break;
      case Drift::kPowerLawTable: {
        float mean[kChunk];
        float deviation[kChunk];
        for (int64_t i = 0; i < part; ++i) look_up(row.exponents, targets[start + i], mean[i], deviation[i]);
        with_fits(row, [&](auto, auto&& relative) {
          change([&](F v, F n, F r, F nu, F std) { return power_law.read_after(v, nu, std, n, relative(v), r); }, noise,
                 mean, deviation);
        });
        break;
      }
      case Drift::kLogTime:
        change(LogTime(row), noise);
        break;
      case Drift::kRelaxation:
        change(Relaxation(row));
        break;
    }
  }
}

void stick_row(const StuckRow& row, int64_t first_column, int64_t count, float* g) {
  const Stuck law(row);
  const double low = row.low;
  const double high = 1.0 - static_cast<double>(row.high);
  // Uniforms of 24 bits that leave the decision to a second word; none where a threshold is one of them.
  const auto tie = [](double threshold) {
    const double above = std::ceil(threshold * 0x1p24);
    return above == threshold * 0x1p24 ? -1.0f : static_cast<float>(above * 0x1p-24);
  };
  const float tie_low = tie(low);
  const float tie_high = tie(high);
  Counter second = row.stuck;
  second.c3 += kStuckSecond - kStuck;
  for (int64_t start = 0; start < count; start += kChunk) {
    const int64_t part = std::min(kChunk, count - start);
    float u[kChunk];
    float before[kChunk];
    uniforms(row.stuck, first_column + start, part, u);
    bool undecided = false;
    for (int64_t i = 0; i < part; ++i) undecided |= u[i] == tie_low || u[i] == tie_high;
    if (undecided) std::copy(g + start, g + start + part, before);
    map_lanes(part, g + start, [&](F v, F uniform) { return law(v, uniform); }, g + start, u);
    for (int64_t i = 0; undecided && i < part; ++i) {
      if (u[i] != tie_low && u[i] != tie_high) continue;
      const int64_t column = first_column + start + i;
      uint32_t words[4];
      philox(second, second.block + static_cast<uint64_t>(column / 4), words);
      const double fine = static_cast<double>(u[i]) - 0x1p-24 + ((words[column % 4] >> 3) + 1.0) * 0x1p-53;
      g[start + i] = fine <= low ? row.floor : fine > high ? 1.0f : before[i];
    }
  }
}

float largest_magnitude(const float* x, int64_t count) {
  // As integers, magnitudes have the order of floats, and a NaN is above infinity instead of lost.
  const I magnitude = set_int(INT32_MAX);
  I best[4] = {set_int(0), set_int(0), set_int(0), set_int(0)};  // several, because each waits for its last maximum
  int64_t i = 0;
  for (; i + 4 * kWidth <= count; i += 4 * kWidth) {
    for (int v = 0; v < 4; ++v) best[v] = maximum_int(best[v], and_int(bits(load(x + i + v * kWidth)), magnitude));
  }
  for (; i < count; i += kWidth) {
    const F v = load_some(x + i, std::min<int64_t>(kWidth, count - i));
    best[0] = maximum_int(best[0], and_int(bits(v), magnitude));
  }
  const int32_t most = largest_int(maximum_int(maximum_int(best[0], best[1]), maximum_int(best[2], best[3])));
  float result = 0;
  std::memcpy(&result, &most, sizeof result);
  return result;
}

void update_magnitudes(const float* x, int64_t count, float* magnitudes) {
  map_lanes(count, magnitudes, [](F a, F b) { return maximum(absolute(a), b); }, x, magnitudes);
}

float sum_of_squares(const float* x, int64_t count) {
  F total = set(0.0f);
  float rest = 0;
  for_each_lane(
      count,
      [&](int64_t i) {
        const F v = load(x + i);
        total = multiply_add(v, v, total);
      },
      [&](int64_t i) { rest += x[i] * x[i]; });
  return sum(total) + rest;
}

void absolute_row(const float* x, int64_t count, float* out) {
  map_lanes(count, out, [](F v) { return absolute(v); }, x);
}

void square_row(const float* x, int64_t count, float* out) {
  map_lanes(count, out, [](F v) { return multiply(v, v); }, x);
}

void widen_ranges(const float* x, int64_t count, float* lowest, float* highest) {
  map_lanes(count, lowest, [](F v, F low) { return minimum(v, low); }, x, lowest);
  map_lanes(count, highest, [](F v, F high) { return maximum(v, high); }, x, highest);
}

void make_codes(float low, float high, const float* w, const float* scales, const float* zeros, int64_t count,
                float* out) {
  const F lowest = set(low);
  const F highest = set(high);
  map_lanes(
      count, out, [&](F v, F scale, F zero) { return code_of(v, scale, zero, lowest, highest); }, w, scales, zeros);
}

void read_codes(const float* codes, const float* scales, const float* zeros, int64_t count, float* out) {
  map_lanes(count, out, [](F code, F scale, F zero) { return value_of(code, scale, zero); }, codes, scales, zeros);
}

void quantize_input(const InputRow& row, const float* x, int64_t count, float* out) {
  const F inverse = set(row.inverse);
  const bool quantize = row.steps > 0;
  const F inverse_step = set(quantize ? static_cast<float>(row.steps / (2.0 * row.bound)) : 0.0f);
  const F step = set(quantize ? static_cast<float>(2.0 * row.bound / row.steps) : 0.0f);
  const F high = set(row.bound);
  const F low = set(-row.bound);
  map_lanes(
      count, out,
      [&](F v) {
        v = multiply(v, inverse);
        if (quantize && row.offset_binary) {
          v = subtract(multiply(round_even(multiply(add(v, high), inverse_step)), step), high);
        } else if (quantize) {
          v = multiply(round_even(multiply(v, inverse_step)), step);
        }
        if (row.clip) v = clamp(v, low, high);
        return v;
      },
      x);
}

void noise_std(const float* v, float c2, float base, float strength, int64_t count, float* out) {
  const F factor = set(c2);
  const F constant = set(base);
  const F amplitude = set(strength);
  const F zero = set(0.0f);
  map_lanes(
      count, out,
      [&](F x) { return multiply(amplitude, square_root(multiply_add(factor, maximum(x, zero), constant))); }, v);
}

// Adds noise to a lane of y of which some exist; returns what it becomes there, 0 elsewhere.
template <typename Some>
inline F disturb_lane(const NoiseRow& row, int64_t column, Some some, F normal, float* y) {
  const F std = row.std_each != nullptr ? load_some(row.std_each + column, some) : set(row.std);
  const F v = multiply_add(std, normal, load_some(y + column, some));
  store_some(y + column, some, v);
  return std::is_same<Some, All>::value ? v : load_some(y + column, some);
}

// v: magnitudes.
inline void raise_peak(float* peaks, int64_t row, F v) {
  if (peaks == nullptr) return;
  float* peak = peaks + row * kPeakLanes;
  store(peak, maximum(load(peak), v));
}

// Adds normals to two lanes of one row, of which some exist; returns the larger magnitudes of both.
template <typename Some>
inline F disturb_two(const NoiseRow& row, int64_t column, Some low, Some high, const F* normals, float* y) {
  const F first = absolute(disturb_lane(row, column, low, normals[0], y));
  if (high == 0) return first;
  return maximum(first, absolute(disturb_lane(row, column + kWidth, high, normals[1], y)));
}

// Columns [0, count) of one row, a whole number of steps of the generator.
inline void disturb_steps(const Counter& counter, const RoundKeys& keys, uint64_t block, const NoiseRow& row,
                          int64_t count, float* y, F& peak) {
  for (int64_t column = 0; column < count; column += kGroupsAtOnce * kNormalsAtOnce) {
    F normals[2 * kGroupsAtOnce];
    const auto blocks = Blocks<kGroupsAtOnce>::of_row(counter, block + static_cast<uint64_t>(column / 4));
    lanes_of_normals<kGroupsAtOnce>(counter, keys, blocks, normals);
    for (int g = 0; g < kGroupsAtOnce; ++g) {
      peak = maximum(peak, disturb_two(row, column + g * kNormalsAtOnce, All(), All(), normals + 2 * g, y));
    }
  }
}

// What is left at the ends of all rows: groups of normals of several rows at once, or narrow rows would leave most
// groups empty.
template <int kGroups>
inline void disturb_ends(const Counter& counter, const RoundKeys& keys, uint64_t first_block, const NoiseRow* rows,
                         int64_t begin, int64_t columns, int64_t& row, int64_t& column, float* y, float* peaks) {
  int64_t row_of[kGroups];
  int64_t column_of[kGroups];
  Blocks<kGroups> blocks;
  for (int g = 0; g < kGroups; ++g) {
    row_of[g] = row;
    column_of[g] = column;
    blocks.set_group(g, counter, rows[row].block + first_block + static_cast<uint64_t>(column / 4), rows[row].position);
    column += kNormalsAtOnce;
    if (column >= columns) {
      column = begin;
      ++row;
    }
  }
  F normals[2 * kGroups];
  lanes_of_normals<kGroups>(counter, keys, blocks, normals);
  for (int g = 0; g < kGroups; ++g) {
    const NoiseRow& own = rows[row_of[g]];
    float* values = y + row_of[g] * columns;
    const int64_t left = columns - column_of[g];
    const int64_t low = std::min<int64_t>(kWidth, left);
    const int64_t high = std::min<int64_t>(kWidth, left - low);
    raise_peak(peaks, row_of[g],
               high == kWidth ? disturb_two(own, column_of[g], All(), All(), normals + 2 * g, values)
                              : disturb_two(own, column_of[g], low, high, normals + 2 * g, values));
  }
}

void disturb_rows(const Counter& counter, int64_t first_column, const NoiseRow* rows, int64_t count, int64_t columns,
                  float* y, float* peaks) {
  if (peaks != nullptr) std::fill(peaks, peaks + count * kPeakLanes, 0.0f);
  Counter own = counter;
  if (first_column % 4 != 0) {  // begins inside a block
    for (int64_t row = 0; row < count; ++row) {
      own.block = rows[row].block;
      own.c1 = rows[row].position;
      for_each_random<MakeNormals>(own, first_column, columns, [&](int64_t i, auto some, F normal) {
        raise_peak(peaks, row, absolute(disturb_lane(rows[row], i, some, normal, y + row * columns)));
      });
    }
  } else {
    const RoundKeys keys(counter);
    const auto first_block = static_cast<uint64_t>(first_column / 4);
    const int64_t whole = columns - columns % (kGroupsAtOnce * kNormalsAtOnce);
    for (int64_t row = 0; row < count && whole > 0; ++row) {
      own.c1 = rows[row].position;
      F peak = set(0.0f);
      disturb_steps(own, keys, rows[row].block + first_block, rows[row], whole, y + row * columns, peak);
      raise_peak(peaks, row, peak);
    }
    int64_t groups = count * ((columns - whole + kNormalsAtOnce - 1) / kNormalsAtOnce);
    int64_t row = 0;
    int64_t column = whole;
    for (; groups >= kGroupsAtOnce; groups -= kGroupsAtOnce) {
      disturb_ends<kGroupsAtOnce>(counter, keys, first_block, rows, whole, columns, row, column, y, peaks);
    }
    for (; groups > 0; --groups) {
      disturb_ends<1>(counter, keys, first_block, rows, whole, columns, row, column, y, peaks);
    }
  }
  for (int64_t row = 0; peaks != nullptr && row < count; ++row) {
    float* peak = peaks + row * kPeakLanes;
    *peak = largest(load(peak));
  }
}

bool read_row(const ReadRow& row, float* p, int64_t count, float* y) {
  float peak = row.peak;
  if (row.gain != nullptr) {
    map_lanes(count, p, [](F v, F gain, F offset) { return add(multiply(v, gain), offset); }, p, row.gain, row.offset);
    peak = -1;
  }
  double bottom = row.low;
  double top = row.high;
  const bool absmax = row.range == ReadRow::Range::kAbsmax;
  if ((absmax || row.stop_if_saturated) && peak < 0) peak = largest_magnitude(p, count);
  if (absmax) {
    top = peak;
    bottom = -top;
  }
  const double span = top - bottom;
  const bool convertible = row.range != ReadRow::Range::kNone && span > 0;
  const bool quantize = convertible && row.steps > 0;
  const bool from_bottom = row.code == AdcCode::kOffsetBinary;
  // Rounding cannot leave the range of absmax where 0 is a level and both ends are.
  const bool clip = convertible && (row.range == ReadRow::Range::kGiven || row.code == AdcCode::kTwosComplement);
  const float step_size = quantize ? static_cast<float>(span / row.steps) : 0.0f;
  const F inverse_step = set(quantize ? static_cast<float>(row.steps / span) : 0.0f);
  const F step = set(step_size);
  if (row.uniforms != nullptr && quantize) {
    const F half = set(0.5f);
    map_lanes(count, p, [&](F v, F u) { return add(v, multiply(subtract(u, half), step)); }, p, row.uniforms);
    if (row.stop_if_saturated) peak = largest_magnitude(p, count);
  }
  if (row.stop_if_saturated && peak > row.most) return true;
  const F zero = set(from_bottom ? static_cast<float>(bottom) : 0.0f);
  const F low = set(static_cast<float>(bottom));
  const bool twos = row.code == AdcCode::kTwosComplement && quantize;
  const F high = set(twos ? static_cast<float>(top - span / row.steps) : static_cast<float>(top));
  const F factor = set(row.factor);
  const auto convert = [&](F v, F scale) {
    if (quantize) {
      if (from_bottom) {
        v = add(multiply(round_even(multiply(subtract(v, zero), inverse_step)), step), zero);
      } else {
        v = multiply(round_even(multiply(v, inverse_step)), step);
      }
    }
    if (clip) v = clamp(v, low, high);
    return multiply(v, multiply(factor, scale));
  };
  if (row.accumulate) {
    map_lanes(
        count, y, [&](F v, F scale, F before) { return add(before, convert(v, scale)); }, static_cast<const float*>(p),
        row.scales, static_cast<const float*>(y));
  } else {
    map_lanes(count, y, convert, static_cast<const float*>(p), row.scales);
  }
  return false;
}

// Of kWidth rows at once: what is fed, times the weights.
template <int kColumns>
inline void multiply_narrow(const NarrowRead& read, F inverse, const float* x, const int64_t* offsets, int64_t depth,
                            int64_t some, const float* b, F* y, F& squares) {
  const InputRow& row = read.input;
  const bool quantize = row.steps > 0;
  const F inverse_step = set(quantize ? static_cast<float>(row.steps / (2.0 * row.bound)) : 0.0f);
  const F step = set(quantize ? static_cast<float>(2.0 * row.bound / row.steps) : 0.0f);
  const F high = set(row.bound);
  const F low = set(-row.bound);
  for (int64_t k = 0; k < depth; ++k) {
    F v = multiply(load_some(x + offsets[k], some), inverse);
    if (quantize && row.offset_binary) {
      v = subtract(multiply(round_even(multiply(add(v, high), inverse_step)), step), high);
    } else if (quantize) {
      v = multiply(round_even(multiply(v, inverse_step)), step);
    }
    if (row.clip) v = clamp(v, low, high);
    squares = multiply_add(v, v, squares);
    for (int n = 0; n < kColumns; ++n) y[n] = multiply_add(v, set(b[n * depth + k]), y[n]);
  }
}

template <int kColumns>
void read_narrow_columns(const NarrowRead& read, const float* x, const int64_t* offsets, int64_t depth, int64_t count,
                         const float* b, const float* normals, float* y, int64_t y_stride) {
  const ReadRow& row = read.output;
  const I magnitude = set_int(INT32_MAX);
  const F zero = set(0.0f);
  const F one = set(1.0f);
  const F infinity = set(std::numeric_limits<float>::infinity());
  const F nan = set(std::numeric_limits<float>::quiet_NaN());
  const bool absmax = row.range == ReadRow::Range::kAbsmax;
  const bool from_bottom = row.code == AdcCode::kOffsetBinary;
  const bool twos = row.code == AdcCode::kTwosComplement && row.steps > 0;
  for (int64_t i = 0; i < count; i += kWidth) {
    const int64_t some = std::min<int64_t>(kWidth, count - i);
    I most = set_int(0);
    for (int64_t k = 0; k < depth; ++k) {
      most = maximum_int(most, and_int(bits(load_some(x + i + offsets[k], some)), magnitude));
    }
    const F largest_input = from_bits(most);
    F alpha = read.alpha > 0 ? set(read.alpha) : largest_input;
    if (read.limit > 0) alpha = minimum(alpha, set(read.limit));
    const F inverse = divide(one, alpha);
    F v[kColumns];
    for (int n = 0; n < kColumns; ++n) v[n] = zero;
    F squares = zero;
    multiply_narrow<kColumns>(read, inverse, x + i, offsets, depth, some, b, v, squares);
    if (read.noisy) {
      const F variance = multiply_add(set(read.weight_variance), squares, set(read.output_variance));
      const F std = multiply(set(read.strength), square_root(variance));
      for (int n = 0; n < kColumns; ++n) {
        float own[kWidth] = {};
        for (int64_t r = 0; r < some; ++r) own[r] = normals[(i + r) * kMostNarrow + n];
        v[n] = multiply_add(std, load(own), v[n]);
      }
    }
    F peak = zero;
    for (int n = 0; n < kColumns; ++n) {
      if (row.gain != nullptr) v[n] = add(multiply(v[n], set(row.gain[n])), set(row.offset[n]));
      peak = maximum(peak, absolute(v[n]));
    }
    const F bottom = absmax ? subtract(zero, peak) : set(row.low);
    const F top = absmax ? peak : set(row.high);
    const bool converts = row.range != ReadRow::Range::kNone;
    const bool quantize = converts && row.steps > 0;
    // In double where it is the same for all, as everywhere; a quotient of two floats is rounded once too.
    const double span = static_cast<double>(row.high) - row.low;
    const F steps = set(static_cast<float>(row.steps));
    const F inverse_step = !quantize ? zero
                           : absmax  ? divide(steps, subtract(top, bottom))
                                     : set(static_cast<float>(row.steps / span));
    const F step = !quantize ? zero
                   : absmax  ? divide(subtract(top, bottom), steps)
                             : set(static_cast<float>(span / row.steps));
    const F start = from_bottom ? bottom : zero;
    F highest = top;
    if (twos) highest = absmax ? subtract(top, step) : set(static_cast<float>(row.high - span / row.steps));
    const bool clip = converts && (!absmax || row.code == AdcCode::kTwosComplement);
    const F factor = multiply(set(row.factor), alpha);
    for (int n = 0; n < kColumns; ++n) {
      F converted = v[n];
      if (quantize) {
        converted = from_bottom
                        ? add(multiply(round_even(multiply(subtract(converted, start), inverse_step)), step), start)
                        : multiply(round_even(multiply(converted, inverse_step)), step);
        if (absmax) converted = where_less(zero, peak, converted, v[n]);  // a range of 0 converts nothing
      }
      if (clip) converted = clamp(converted, bottom, highest);
      F result = multiply(converted, multiply(factor, set(row.scales[n])));
      if (read.marks_lost) {
        result = where_less(inverse, infinity, result, zero);
        result = where_less(largest_input, infinity, result, nan);
      }
      store_some(y + n * y_stride + i, some, result);
    }
  }
}

void read_narrow(const NarrowRead& read, const float* x, const int64_t* offsets, int64_t depth, int64_t count,
                 const float* b, int64_t columns, const float* normals, float* y, int64_t y_stride) {
  static_assert(kMostNarrow == 4, "a function for each number of columns");
  using Function = decltype(&read_narrow_columns<1>);
  constexpr Function kFunctions[] = {read_narrow_columns<1>, read_narrow_columns<2>, read_narrow_columns<3>,
                                     read_narrow_columns<4>};
  kFunctions[columns - 1](read, x, offsets, depth, count, b, normals, y, y_stride);
}

#include "fixed_point_product.inl"
#include "matrix_product.inl"
//
#include "variance_product.inl"

constexpr Packing kFloatPacking = {kPanel, packed_size, pack};
constexpr Packing kRoundedPacking = {kPanel, rounded_size, pack_rounded};
#if defined(EMU_BYTE_PRODUCTS)
constexpr Packing kFixedPacking = {kWidth, packed_fixed_size, pack_fixed};
constexpr const Packing* kFixedPackingIfAny = &kFixedPacking;
constexpr Packing kVariancePacking = {kWidth, packed_variance_size, pack_variances};
constexpr const Packing* kVariancePackingIfAny = &kVariancePacking;
#else
constexpr const Packing* kFixedPackingIfAny = nullptr;
constexpr int64_t kDeepestFixed = 0;
constexpr decltype(Kernels::multiply_codes) multiply_codes = nullptr;
constexpr decltype(Kernels::encode_input) encode_input = nullptr;
constexpr const Packing* kVariancePackingIfAny = nullptr;
constexpr decltype(Kernels::encode_squares) encode_squares = nullptr;
constexpr decltype(Kernels::multiply_variances) multiply_variances = nullptr;
#endif
// NOLINTEND(google-build-using-namespace)

}  // namespace

// Defines the function that hands out this translation unit's table.
#define EMU_DEFINE_KERNELS(function, label)              \
  const Kernels& function() {                            \
    static const Kernels table = {label,                 \
                                  words,                 \
                                  normals,               \
                                  uniforms,              \
                                  map_row,               \
                                  store_row,             \
                                  program_row,           \
                                  theta_row,             \
                                  drift_row,             \
                                  stick_row,             \
                                  largest_magnitude,     \
                                  update_magnitudes,     \
                                  sum_of_squares,        \
                                  absolute_row,          \
                                  square_row,            \
                                  widen_ranges,          \
                                  make_codes,            \
                                  read_codes,            \
                                  quantize_input,        \
                                  noise_std,             \
                                  disturb_rows,          \
                                  &kFloatPacking,        \
                                  multiply_packed,       \
                                  kFixedPackingIfAny,    \
                                  kDeepestFixed,         \
                                  multiply_codes,        \
                                  encode_input,          \
                                  &kRoundedPacking,      \
                                  round_squares,         \
                                  multiply_rounded,      \
                                  kVariancePackingIfAny, \
                                  encode_squares,        \
                                  multiply_variances,    \
                                  read_narrow,           \
                                  read_row};             \
    return table;                                        \
  }

}  // namespace emu
