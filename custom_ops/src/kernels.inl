// The loops of kernels.h on the lanes of lanes.h. Included once by each kernels_<instruction set>.cpp.
// Polynomials: Cephes' single-precision logf, sinf, cosf and expf (Moshier), on the reduced ranges used here.

#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "lanes.h"

namespace emu {
namespace {

// NOLINTBEGIN(google-build-using-namespace): this file is the body of one instruction set's translation unit.
using namespace lanes;

constexpr int kBlocksAtOnce = kWidth / 2;   // philox blocks in one W
constexpr int kNormalsAtOnce = 2 * kWidth;  // normals that they give
constexpr int64_t kChunk = 256;             // normals kept on the stack between generation and use
static_assert(kChunk % kNormalsAtOnce == 0, "a chunk is a whole number of vector steps");

struct RoundKeys {
  W k0[kPhiloxRounds];
  W k1[kPhiloxRounds];
  explicit RoundKeys(const Counter& counter) {
    for (int round = 0; round < kPhiloxRounds; ++round) {
      k0[round] = set_wide(counter.key0 + kPhiloxWeyl0 * static_cast<uint32_t>(round));
      k1[round] = set_wide(counter.key1 + kPhiloxWeyl1 * static_cast<uint32_t>(round));
    }
  }
};

// Words (x0, x2) and (x1, x3) of kBlocksAtOnce blocks from block on. Each 64-bit lane carries one block; only the low
// halves of the state mean anything, the high halves are left-overs of the products.
inline void philox_lanes(const Counter& counter, const RoundKeys& keys, uint64_t block, I& words02, I& words13) {
  const W index = add_wide(set_wide(block), block_offsets());
  W c0 = index;
  W c1 = counter.wide_block ? high_half(index) : set_wide(counter.c1);
  W c2 = set_wide(counter.c2);
  W c3 = set_wide(counter.c3);
  const W multiplier0 = set_wide(kPhiloxMultiplier0);
  const W multiplier1 = set_wide(kPhiloxMultiplier1);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const W p0 = multiply_low_halves(c0, multiplier0);
    const W p1 = multiply_low_halves(c2, multiplier1);
    c0 = xor3(high_half(p1), c1, keys.k0[round]);
    c1 = p1;
    c2 = xor3(high_half(p0), c3, keys.k1[round]);
    c3 = p0;
  }
  words02 = pair(c0, c2);
  words13 = pair(c1, c3);
}

// sqrt(-2 ln u), u = ((x >> 8) + 1) 2^-24. The integer is exact as a float, so the logarithm is accurate near u = 1
// too.
inline F box_muller_radius(I words) {
  const F k = to_float(add_int(shift_right<8>(words), set_int(1)));
  // k = m 2^e with m in [sqrt(1/2), sqrt(2))
  const I offset = subtract_int(bits(k), set_int(0x3F3504F3));
  const I exponent = shift_right_signed<23>(offset);
  const F m = from_bits(subtract_int(bits(k), shift_left<23>(exponent)));
  const F e = subtract(to_float(exponent), set(24.0f));
  const F t = subtract(m, set(1.0f));
  const F t2 = multiply(t, t);
  F poly = set(7.0376836292e-2f);
  poly = multiply_add(poly, t, set(-1.1514610310e-1f));
  poly = multiply_add(poly, t, set(1.1676998740e-1f));
  poly = multiply_add(poly, t, set(-1.2420140846e-1f));
  poly = multiply_add(poly, t, set(1.4249322787e-1f));
  poly = multiply_add(poly, t, set(-1.6668057665e-1f));
  poly = multiply_add(poly, t, set(2.0000714765e-1f));
  poly = multiply_add(poly, t, set(-2.4999993993e-1f));
  poly = multiply_add(poly, t, set(3.3333331174e-1f));
  F ln = multiply(multiply(poly, t), t2);
  ln = multiply_add(e, set(-2.12194440e-4f), ln);
  ln = multiply_add(t2, set(-0.5f), ln);
  ln = add(ln, t);
  ln = multiply_add(e, set(0.693359375f), ln);
  return square_root(multiply(ln, set(-2.0f)));
}

// cos and sin of 2 pi u. The quadrant is split off in integers, so the reduction is exact.
inline void box_muller_angle(I words, F& cosine, F& sine) {
  const I k = add_int(shift_right<8>(words), set_int(1));
  const I quadrant = shift_right<22>(add_int(k, set_int(1 << 21)));
  const I rest = subtract_int(k, shift_left<22>(quadrant));
  const F angle = multiply(to_float(rest), set(3.7450703e-7f));  // 2 pi 2^-24
  const F z = multiply(angle, angle);
  F s = set(-1.9515295891e-4f);
  s = multiply_add(s, z, set(8.3321608736e-3f));
  s = multiply_add(s, z, set(-1.6666654611e-1f));
  s = multiply_add(multiply(s, z), angle, angle);
  F c = set(2.443315711809948e-5f);
  c = multiply_add(c, z, set(-1.388731625493765e-3f));
  c = multiply_add(c, z, set(4.166664568298827e-2f));
  c = multiply(multiply(c, z), z);
  c = add(multiply_add(z, set(-0.5f), c), set(1.0f));
  const I sine_sign = shift_left<30>(and_int(quadrant, set_int(2)));
  const I cosine_sign = shift_left<30>(and_int(add_int(quadrant, set_int(1)), set_int(2)));
  cosine = flip_sign(choose(quadrant, c, s), cosine_sign);
  sine = flip_sign(choose(quadrant, s, c), sine_sign);
}

inline F exponential(F x) {
  x = minimum(maximum(x, set(-87.0f)), set(88.0f));
  const F n = round_even(multiply(x, set(1.44269504f)));
  F r = multiply_add(n, set(-0.693359375f), x);
  r = multiply_add(n, set(2.12194440e-4f), r);
  F poly = set(1.9875691500e-4f);
  poly = multiply_add(poly, r, set(1.3981999507e-3f));
  poly = multiply_add(poly, r, set(8.3334519073e-3f));
  poly = multiply_add(poly, r, set(4.1665795894e-2f));
  poly = multiply_add(poly, r, set(1.6666665459e-1f));
  poly = multiply_add(poly, r, set(5.0000001201e-1f));
  const F value = add(multiply_add(multiply(poly, r), r, r), set(1.0f));
  // 2^n through the exponent bits: n + 1.5 * 2^23 holds n in its low bits.
  const I power = shift_left<23>(subtract_int(bits(add(n, set(12582912.0f))), bits(set(12582912.0f))));
  return from_bits(add_int(bits(value), power));
}

inline void two_normals(const Counter& counter, const RoundKeys& keys, uint64_t block, F& first, F& second) {
  I words02;
  I words13;
  philox_lanes(counter, keys, block, words02, words13);
  const F radius = box_muller_radius(words02);
  F cosine;
  F sine;
  box_muller_angle(words13, cosine, sine);
  cosine = multiply(cosine, radius);
  sine = multiply(sine, radius);
  first = unpack_low(cosine, sine);
  second = unpack_high(cosine, sine);
}

void words(const Counter& counter, int64_t count, uint32_t* out) {
  const RoundKeys keys(counter);
  for (int64_t done = 0; done < count; done += kBlocksAtOnce) {
    I words02;
    I words13;
    philox_lanes(counter, keys, counter.block + static_cast<uint64_t>(done), words02, words13);
    uint32_t buffer[4 * kBlocksAtOnce];
    store_ints(buffer, unpack_low(words02, words13));
    store_ints(buffer + 2 * kBlocksAtOnce, unpack_high(words02, words13));
    const int64_t blocks = std::min<int64_t>(kBlocksAtOnce, count - done);
    std::copy(buffer, buffer + 4 * blocks, out + 4 * done);
  }
}

void normals(const Counter& counter, int64_t first_column, int64_t count, float* out) {
  const RoundKeys keys(counter);
  uint64_t block = counter.block + static_cast<uint64_t>(first_column / 4);
  int64_t skip = first_column % 4;
  int64_t done = 0;
  while (done < count) {
    F first;
    F second;
    two_normals(counter, keys, block, first, second);
    if (skip == 0 && count - done >= kNormalsAtOnce) {
      store(out + done, first);
      store(out + done + kWidth, second);
      done += kNormalsAtOnce;
    } else {
      float buffer[kNormalsAtOnce];
      store(buffer, first);
      store(buffer + kWidth, second);
      const int64_t part = std::min<int64_t>(kNormalsAtOnce - skip, count - done);
      std::copy(buffer + skip, buffer + skip + part, out + done);
      done += part;
      skip = 0;
    }
    block += kBlocksAtOnce;
  }
}

// Calls step(i) for whole vectors and tail(i) for the elements after them.
template <typename Step, typename Tail>
inline void for_each_lane(int64_t count, Step&& step, Tail&& tail) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) step(i);
  for (; i < count; ++i) tail(i);
}

// Applies map(F...) -> F element by element, the tail through a padded vector, so that every element sees the same
// arithmetic.
template <typename Map, typename... Inputs>
inline void map_row(int64_t count, float* out, Map&& map, const Inputs*... inputs) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(out + i, map(load(inputs + i)...));
  if (i < count) {
    const auto rest = static_cast<size_t>(count - i);
    const auto padded = [&](const float* p) {
      float buffer[kWidth] = {};
      std::memcpy(buffer, p + i, rest * sizeof(float));
      return load(buffer);
    };
    float result[kWidth];
    store(result, map(padded(inputs)...));
    std::memcpy(out + i, result, rest * sizeof(float));
  }
}

// theta of one chunk: sigma N + sigma_cycle N'.
void chunk_theta(const StoreRow& row, uint32_t stream_offset, int64_t first_column, int64_t count, float* theta) {
  Counter device = row.device;
  device.c3 += stream_offset;
  normals(device, first_column, count, theta);
  const F sigma = set(row.sigma);
  if (row.sigma_cycle == 0) {
    map_row(count, theta, [&](F n) { return multiply(sigma, n); }, theta);
    return;
  }
  float cycle_normals[kChunk];
  Counter cycle = row.cycle;
  cycle.c3 += stream_offset;
  normals(cycle, first_column, count, cycle_normals);
  const F sigma_cycle = set(row.sigma_cycle);
  map_row(
      count, theta, [&](F n, F m) { return multiply_add(sigma_cycle, m, multiply(sigma, n)); }, theta, cycle_normals);
}

void store_row(const StoreRow& row, const float* w, const float* scales, int64_t first_column, int64_t count,
               float* out) {
  const bool quiet = row.model == Disturbance::kNone ||
                     (row.sigma == 0 && row.sigma_cycle == 0 && row.model != Disturbance::kLognormalConductance);
  const float variance = row.sigma * row.sigma + row.sigma_cycle * row.sigma_cycle;
  const F mean_shift = set(row.model == Disturbance::kLognormalMeanCorrected ? -0.5f * variance : 0.0f);
  for (int64_t start = 0; start < count; start += kChunk) {
    const int64_t part = std::min(kChunk, count - start);
    const float* values = w + start;
    const float* s = scales + start;
    float* target = out + start;
    float theta[kChunk];
    if (!quiet) chunk_theta(row, 0, first_column + start, part, theta);
    if (quiet) {
      std::copy(values, values + part, target);
    } else if (row.model == Disturbance::kLognormal || row.model == Disturbance::kLognormalMeanCorrected) {
      map_row(part, target, [&](F v, F t) { return multiply(v, exponential(add(t, mean_shift))); }, values, theta);
    } else if (row.model == Disturbance::kGaussProportional) {
      map_row(part, target, [&](F v, F t) { return multiply(v, add(set(1.0f), t)); }, values, theta);
    } else if (row.model == Disturbance::kGaussRange) {
      map_row(part, target, [&](F v, F t, F scale) { return multiply_add(scale, t, v); }, values, theta, s);
    } else {
      float theta_negative[kChunk];
      float unit[kChunk];
      chunk_theta(row, 1, first_column + start, part, theta_negative);
      for (int64_t i = 0; i < part; ++i) unit[i] = values[i] / s[i];
      const F floor = set(row.conductance_floor);
      const F zero = set(0.0f);
      map_row(
          part, target,
          [&](F u, F positive, F negative, F scale) {
            const F p = multiply(add(maximum(u, zero), floor), exponential(positive));
            const F m = multiply(add(maximum(subtract(zero, u), zero), floor), exponential(negative));
            return multiply(scale, subtract(p, m));
          },
          unit, theta, theta_negative, s);
    }
    if (row.normalize) {
      for (int64_t i = 0; i < part; ++i) target[i] = target[i] / s[i];
    }
  }
}

float largest_magnitude(const float* x, int64_t count) {
  F best = set(0.0f);
  float rest = 0;
  for_each_lane(
      count, [&](int64_t i) { best = maximum(best, absolute(load(x + i))); },
      [&](int64_t i) {
        const float magnitude = x[i] < 0 ? -x[i] : x[i];
        rest = magnitude > rest ? magnitude : rest;
      });
  const float best_lane = largest(best);
  return best_lane > rest ? best_lane : rest;
}

void update_magnitudes(const float* x, int64_t count, float* magnitudes) {
  map_row(count, magnitudes, [](F a, F b) { return maximum(absolute(a), b); }, x, magnitudes);
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
  map_row(count, out, [](F v) { return absolute(v); }, x);
}

void square_row(const float* x, int64_t count, float* out) {
  map_row(count, out, [](F v) { return multiply(v, v); }, x);
}

void quantize_input(const InputRow& row, const float* x, int64_t count, float* out) {
  const F inverse = set(row.inverse);
  const bool quantize = row.steps > 0;
  const F inverse_step = set(quantize ? static_cast<float>(row.steps / (2.0 * row.bound)) : 0.0f);
  const F step = set(quantize ? static_cast<float>(2.0 * row.bound / row.steps) : 0.0f);
  const F high = set(row.bound);
  const F low = set(-row.bound);
  map_row(
      count, out,
      [&](F v) {
        v = multiply(v, inverse);
        if (quantize) v = multiply(round_even(multiply(v, inverse_step)), step);
        if (row.clip) v = minimum(maximum(v, low), high);
        return v;
      },
      x);
}

void noise_std(const float* v, float c2, float base, float strength, int64_t count, float* out) {
  const F factor = set(c2);
  const F constant = set(base);
  const F amplitude = set(strength);
  const F zero = set(0.0f);
  map_row(
      count, out,
      [&](F x) { return multiply(amplitude, square_root(multiply_add(factor, maximum(x, zero), constant))); }, v);
}

bool read_row(const ReadRow& row, float* p, int64_t count, float* y) {
  if (row.noisy) {
    for (int64_t start = 0; start < count; start += kChunk) {
      const int64_t part = std::min(kChunk, count - start);
      float noise[kChunk];
      normals(row.noise, row.first_column + start, part, noise);
      if (row.noise_std_each != nullptr) {
        map_row(
            part, p + start, [](F v, F n, F std) { return multiply_add(std, n, v); }, p + start, noise,
            row.noise_std_each + start);
      } else {
        const F std = set(row.noise_std);
        map_row(part, p + start, [&](F v, F n) { return multiply_add(std, n, v); }, p + start, noise);
      }
    }
  }
  bool saturated = false;
  double bound = row.bound;
  if (row.range == ReadRow::Range::kAbsMax || (row.range == ReadRow::Range::kFixed && row.stop_if_saturated)) {
    const float peak = largest_magnitude(p, count);
    if (row.range == ReadRow::Range::kAbsMax) {
      bound = peak;
    } else {
      saturated = peak > row.bound;
      if (saturated) return true;
    }
  }
  const bool quantize = row.range != ReadRow::Range::kNone && row.steps > 0 && bound > 0;
  const bool clip = row.range == ReadRow::Range::kFixed;
  const F inverse_step = set(quantize ? static_cast<float>(row.steps / (2.0 * bound)) : 0.0f);
  const F step = set(quantize ? static_cast<float>(2.0 * bound / row.steps) : 0.0f);
  const F high = set(row.bound);
  const F low = set(-row.bound);
  const F factor = set(row.factor);
  const auto convert = [&](F v, F scale) {
    if (quantize) v = multiply(round_even(multiply(v, inverse_step)), step);
    if (clip) v = minimum(maximum(v, low), high);
    return multiply(v, multiply(factor, scale));
  };
  if (row.accumulate) {
    map_row(
        count, y, [&](F v, F scale, F before) { return add(before, convert(v, scale)); }, static_cast<const float*>(p),
        row.scales, static_cast<const float*>(y));
  } else {
    map_row(count, y, convert, static_cast<const float*>(p), row.scales);
  }
  return false;
}
// NOLINTEND(google-build-using-namespace)

}  // namespace

// Defines the function that hands out this translation unit's table.
#define EMU_DEFINE_KERNELS(function, label)                                                             \
  const Kernels& function() {                                                                           \
    static const Kernels table = {                                                                      \
        label,          words,        normals,    store_row,      largest_magnitude, update_magnitudes, \
        sum_of_squares, absolute_row, square_row, quantize_input, noise_std,         read_row};         \
    return table;                                                                                       \
  }

}  // namespace emu
