// What devices do to values, docs/operators.md "What is stored" and "What is written": pure functions of lanes, without
// memory, loops or threads. Included after a header that says in namespace lanes what a lane is (F), its bits (I) and
// what can be done with them: lanes.h on processors; another backend brings its own, and its own loops.
//
// A law is a function, or an object that holds what is the same for a whole row. g and v: conductances in units of
// g_max, or numbers; n, r, theta: normals and what became of them.
#pragma once

#include <algorithm>

#include "kernels.h"

namespace emu {
namespace {
namespace laws {

// NOLINTNEXTLINE(google-build-using-namespace): lanes differ by backend.
using namespace lanes;

// Elementary functions. Polynomials: Cephes' single-precision logf and expf (Moshier), on the reduced ranges used here.

// ln(k 2^-shift) for positive normal k.
template <int kShift>
inline F logarithm_scaled(F k) {
  // k = m 2^e with m in [sqrt(1/2), sqrt(2))
  const I offset = subtract_int(bits(k), set_int(0x3F3504F3));
  const I exponent = shift_right_signed<23>(offset);
  const F m = from_bits(subtract_int(bits(k), shift_left<23>(exponent)));
  const F e = subtract(to_float(exponent), set(static_cast<float>(kShift)));
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
  return multiply_add(e, set(0.693359375f), ln);
}

inline F logarithm(F x) { return logarithm_scaled<0>(x); }

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

// A NaN stays one: where either is none, minimum and maximum give their second argument.
inline F clamp(F v, F low, F high) { return minimum(high, maximum(low, v)); }

inline F round_down(F v) {
  const F rounded = round_even(v);
  return where_less(v, rounded, subtract(rounded, set(1.0f)), rounded);
}

// ((c[size - 1] x + c[size - 2]) x + ..) x + c[0]
template <int kSize>
struct Polynomial {
  F c[kSize];
  explicit Polynomial(const float* coefficients) {
    for (int i = 0; i < kSize; ++i) c[i] = set(coefficients[i]);
  }
  F operator()(F x) const {
    F value = c[kSize - 1];
    for (int i = kSize - 2; i >= 0; --i) value = multiply_add(value, x, c[i]);
    return value;
  }
};

// Targets: the number of limited resolution, or the conductance of one device, that a value stands for.
struct Targets {
  F zero = set(0.0f);
  F one = set(1.0f);
  F half = set(0.5f);
  F weight_steps;
  F level_steps;
  F floor;
  F range;
  F offset_slope;
  F offset_base;
  F slice_steps;
  F slice_base;
  F slice_divisor;
  bool clip;
  bool rounded;
  bool levels;
  bool sliced;
  bool negative;

  explicit Targets(const MapRow& row)
      : weight_steps(set(row.weight_steps)),
        level_steps(set(row.level_steps)),
        floor(set(row.floor)),
        range(set(1.0f - row.floor)),
        slice_steps(set(row.slice_steps)),
        slice_base(set(row.slice_steps + 1.0f)),
        slice_divisor(set(row.slice_divisor)),
        clip(row.clip),
        rounded(row.weight_steps > 0),
        levels(row.level_steps > 0),
        sliced(row.slice_steps > 0),
        negative(row.negative) {
    const double shrink = levels ? (row.level_steps - 1.0) / row.level_steps : 1.0;  // R' / R
    offset_slope = set(static_cast<float>(shrink));
    offset_base = set(static_cast<float>(1.0 - shrink));
  }
  F level(F q) const { return levels ? divide(round_even(multiply(q, level_steps)), level_steps) : q; }
  F conductance(F q) const { return add(floor, multiply(range, q)); }
  F digit(F k) const {
    const F shifted = round_down(divide(k, slice_divisor));
    return divide(subtract(shifted, multiply(slice_base, round_down(divide(shifted, slice_base)))), slice_steps);
  }
  // Of the positive or negative device.
  F side(F v) const { return negative ? subtract(zero, v) : v; }

  template <Encoding kEncoding>
  F of(F value, F scale) const {
    F u = divide(value, scale);
    if (clip) u = clamp(u, subtract(zero, one), one);
    F k = zero;
    if (rounded) {
      k = round_even(multiply(u, weight_steps));
      u = divide(k, weight_steps);
    }
    if constexpr (kEncoding == Encoding::kWeight) {
      return u;
    } else if constexpr (kEncoding == Encoding::kDifferential) {
      return conductance(sliced ? digit(maximum(side(k), zero)) : level(maximum(side(u), zero)));
    } else if constexpr (kEncoding == Encoding::kTwoSided) {
      return conductance(level(multiply(negative ? subtract(one, u) : add(one, u), half)));
    } else {
      if (sliced) return conductance(digit(add(k, add(weight_steps, one))));
      return conductance(level(add(offset_base, multiply(offset_slope, add(multiply(u, half), half)))));
    }
  }
};

// Codes of weights, and what they stand for.
inline F code_of(F v, F scale, F zero, F low, F high) {
  const F whole =
      set(0x1p23f);  // from here on floats have no fraction; adding it to smaller ones leaves no bits for it
  const F quotient = divide(v, scale);
  const F magnitude = absolute(quotient);
  const F rounded = where_less(magnitude, whole, subtract(add(magnitude, whole), whole), magnitude);
  return clamp(add(flip_sign(rounded, and_int(bits(quotient), set_int(INT32_MIN))), zero), low, high);
}
inline F value_of(F code, F scale, F zero) { return multiply(subtract(code, zero), scale); }

// Programming and writing.
inline F lognormal(F v, F theta) { return multiply(v, exponential(theta)); }
inline F independent(F v, F theta) { return add(v, theta); }
inline F proportional(F v, F theta) { return multiply(v, add(set(1.0f), theta)); }
inline F inverse(F v, F theta) { return where_less(set(0.0f), v, add(v, divide(theta, v)), v); }
inline F in_scale(F v, F theta, F scale) { return multiply_add(scale, theta, v); }
inline F by_level(F v, F factor) { return divide(v, factor); }
inline F spread(F v, F n, F std) { return multiply_add(std, n, v); }

// Standard deviation amplitude (1 - exp(-v rate)).
struct Saturating {
  F amplitude;
  F rate;
  Saturating(float amplitude_of, float rate_of) : amplitude(set(amplitude_of)), rate(set(-rate_of)) {}
  F operator()(F v) const { return multiply(amplitude, subtract(set(1.0f), exponential(multiply(v, rate)))); }
};

struct ResistanceRange {
  F floor;
  F range;
  F sigma;
  F sigma_off;
  explicit ResistanceRange(const ProgramRow& row)
      : floor(set(row.floor)), range(set(1.0f - row.floor)), sigma(set(row.sigma)), sigma_off(set(row.sigma_off)) {}
  F operator()(F v, F n, F m) const {
    const F one = set(1.0f);
    const F least = set(0.01f);
    const F on = divide(one, maximum(multiply_add(sigma, n, one), least));
    const F off = divide(floor, maximum(multiply_add(sigma_off, m, one), least));
    return multiply_add(subtract(on, off), divide(subtract(v, floor), range), off);
  }
};

// The conductance that one device of a pair should have of an operand that is written at run time; u: the operand in
// units of its scale.
struct WrittenTarget {
  F floor;
  F range;
  F shift;
  F highest;
  F steps;
  bool moved;
  bool rounded;
  explicit WrittenTarget(const StoreRow& row)
      : floor(set(row.floor)),
        range(set(1.0f - row.floor)),
        shift(set(row.alpha * row.floor)),
        highest(set(std::max(row.beta, row.floor))),
        steps(set(row.write_steps)),
        moved(row.moved),
        rounded(row.write_steps > 0) {}
  F operator()(F u) const {
    F q = maximum(u, set(0.0f));
    if (rounded) q = divide(round_even(multiply(q, steps)), steps);
    const F g = add(multiply(q, range), floor);
    return moved ? minimum(maximum(subtract(g, shift), floor), highest) : g;
  }
};

// One device of such a pair, with noise that grows with a power of what is written.
struct ClipFormer {
  WrittenTarget target;
  F inverse_range;
  F exponent;
  F at_zero;      // what the power makes of 0
  F of_digit[3];  // the variance of a cell that holds 0, 1, 2; of 3 it is 1
  bool root;
  bool cells;
  explicit ClipFormer(const StoreRow& row)
      : target(row),
        inverse_range(set(1.0f / (1.0f - row.floor))),
        exponent(set(row.exponent)),
        at_zero(set(row.exponent == 0 ? 1.0f : 0.0f)),
        root(row.exponent == 0.5f),
        cells(row.cells) {
    for (int digit = 0; digit < 3; ++digit) {
      of_digit[digit] = set(static_cast<float>(std::pow(digit / 3.0, 2.0 * static_cast<double>(row.exponent))));
    }
  }
  F operator()(F u, F n) const {
    const F floor = target.floor;
    const F p = multiply(subtract(target(u), floor), inverse_range);
    const F disturbed = add(floor, multiply(target.range, multiply_add(spread(p), n, p)));
    return clamp(disturbed, floor, set(1.0f));
  }
  F spread(F p) const {
    if (cells) return square_root(of_cells(p));
    if (root) return square_root(p);
    const F least = set(1e-30f);
    return where_less(p, least, at_zero, exponential(multiply(logarithm(maximum(p, least)), exponent)));
  }
  // Four cells of two bits: sum of (3 4^i / 255)^2 (digit / 3)^(2 exponent).
  F of_cells(F p) const {
    F variance = set(0.0f);
    F rest = round_even(multiply(p, set(255.0f)));
    float weight = 9.0f / (255.0f * 255.0f);
    for (int i = 0; i < 4; ++i) {
      const F next = round_down(multiply(rest, set(0.25f)));
      const F digit = subtract(rest, multiply(set(4.0f), next));
      const F above = where_less(digit, set(2.5f), of_digit[2], set(1.0f));
      const F own = where_less(digit, set(0.5f), of_digit[0], where_less(digit, set(1.5f), of_digit[1], above));
      variance = multiply_add(set(weight), own, variance);
      rest = next;
      weight *= 16.0f;
    }
    return variance;
  }
};

// Drift.
constexpr float kLeastConductance = 1e-7f;

// A number by the conductance: a logarithm with limits below the joint, a polynomial above it (kJoint false: alone).
template <bool kJoint>
struct Fitted {
  F joint;
  F slope;
  F offset;
  F low;
  F high;
  Polynomial<4> above;
  explicit Fitted(const Fit& fit)
      : joint(set(fit.joint)),
        slope(set(fit.slope)),
        offset(set(fit.offset)),
        low(set(fit.low)),
        high(set(fit.high)),
        above(fit.c) {}
  static F logarithm_of(F x) { return kJoint ? logarithm(x) : x; }
  F operator()(F x, F ln) const {
    if constexpr (!kJoint) return above(x);
    return where_less(x, joint, clamp(multiply_add(slope, ln, offset), low, high), above(x));
  }
};

// Relative amplitude of a reading's noise by the programmed conductance: a fit, or a power of it with a limit.
template <bool kJoint>
struct FittedNoise {
  Fitted<kJoint> fit;
  explicit FittedNoise(const DriftRow& row) : fit(row.read_fit) {}
  F operator()(F v) const {
    const F x = maximum(v, set(kLeastConductance));
    return fit(x, fit.logarithm_of(x));
  }
};
struct PowerNoise {
  F q;
  F power;
  F cap;
  explicit PowerNoise(const DriftRow& row) : q(set(row.read_q)), power(set(row.read_power)), cap(set(row.read_cap)) {}
  F operator()(F v) const {
    const F x = maximum(v, set(kLeastConductance));
    return minimum(divide(q, exponential(multiply(logarithm(x), power))), cap);
  }
};

struct PowerLaw {
  F scale;
  F log_ratio;
  F strength;
  F read;
  explicit PowerLaw(const DriftRow& row)
      : scale(set(row.scale)), log_ratio(set(-row.log_ratio)), strength(set(row.strength)), read(set(row.read)) {}
  F after(F v, F nu) const { return multiply(v, exponential(multiply(multiply(nu, scale), log_ratio))); }
  // With an exponent that is never negative, then read once with noise.
  F read_after(F v, F mean, F spread, F n, F noise, F r) const {
    const F h = after(v, absolute(multiply_add(multiply(strength, spread), n, mean)));
    return multiply_add(multiply(h, multiply(noise, read)), r, h);
  }
};

// Shift and spread by the logarithm of time, in microsiemens.
struct LogTime {
  F g_max;
  F inverse;
  F shift;
  F spread;
  F read;
  explicit LogTime(const DriftRow& row)
      : g_max(set(row.g_max_us)),
        inverse(set(1.0f / row.g_max_us)),
        shift(set(row.shift_us)),
        spread(set(row.spread_us)),
        read(set(row.read)) {}
  F operator()(F v, F n, F r) const {
    const F h = add(multiply(v, g_max), multiply_add(spread, n, shift));
    const F log10 = multiply(logarithm(maximum(h, set(1e-3f))), set(0.434294482f));
    return multiply(multiply_add(multiply(read, log10), r, h), inverse);
  }
};

// Towards a final conductance, each device with a time constant of its own.
struct Relaxation {
  F final;
  F elapsed;
  F spread;
  explicit Relaxation(const DriftRow& row)
      : final(set(row.final)), elapsed(set(-row.elapsed)), spread(set(-row.nu_sigma * row.strength)) {}
  F operator()(F v, F n) const {
    return multiply_add(subtract(v, final), exponential(multiply(elapsed, exponential(multiply(spread, n)))), final);
  }
};

// Cells that no longer change.
struct Stuck {
  F low;
  F high;
  F floor;
  explicit Stuck(const StuckRow& row) : low(set(row.low)), high(set(1.0f - row.high)), floor(set(row.floor)) {}
  // u <= low is not low < u
  F operator()(F v, F u) const { return where_less(low, u, where_less(high, u, set(1.0f), v), floor); }
};

}  // namespace laws
}  // namespace
}  // namespace emu
