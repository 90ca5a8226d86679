// Normals of the noise streams in lanes, included by kernels.inl: Philox4x32-10 and the Box-Muller transform.

constexpr int kBlocksAtOnce = kWidth / 2;           // philox blocks in one W
constexpr int kNormalsAtOnce = 2 * kWidth;          // normals that they give
constexpr int kGroupsAtOnce = kWidth == 4 ? 1 : 4;  // of such blocks, as the registers allow

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

// kBlocksAtOnce blocks from one on, for each of kGroups groups: words c0 and c1 of their counters.
template <int kGroups>
struct Blocks {
  W c0[kGroups];
  W c1[kGroups];

  void set_group(int g, const Counter& counter, uint64_t block, uint32_t row) {
    const W index = add_wide(set_wide(block), block_offsets());
    c0[g] = counter.block_word == BlockWord::kC1 ? set_wide(0) : index;
    c1[g] = counter.block_word == BlockWord::kC0     ? set_wide(row)
            : counter.block_word == BlockWord::kWide ? high_half(index)
                                                     : index;
  }
  // One group after another.
  static Blocks of_row(const Counter& counter, uint64_t block) {
    Blocks blocks;
    for (int g = 0; g < kGroups; ++g) {
      blocks.set_group(g, counter, block + static_cast<uint64_t>(g * kBlocksAtOnce), counter.c1);
    }
    return blocks;
  }
};

// Words (x0, x2) and (x1, x3) of blocks. Each 64-bit lane carries one block; only the low halves of the state mean
// anything, the high halves are left-overs of the products. Groups go through the rounds side by side, because one
// alone waits for its own products most of the time.
template <int kGroups>
inline void philox_lanes(const Counter& counter, const RoundKeys& keys, const Blocks<kGroups>& blocks, I* words02,
                         I* words13) {
  W c0[kGroups];
  W c1[kGroups];
  W c2[kGroups];
  W c3[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    c0[g] = blocks.c0[g];
    c1[g] = blocks.c1[g];
    c2[g] = set_wide(counter.c2);
    c3[g] = set_wide(counter.c3);
  }
  const W multiplier0 = set_wide(kPhiloxMultiplier0);
  const W multiplier1 = set_wide(kPhiloxMultiplier1);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    for (int g = 0; g < kGroups; ++g) {
      const W p0 = multiply_low_halves(c0[g], multiplier0);
      const W p1 = multiply_low_halves(c2[g], multiplier1);
      c0[g] = xor3(high_half(p1), c1[g], keys.k0[round]);
      c1[g] = p1;
      c2[g] = xor3(high_half(p0), c3[g], keys.k1[round]);
      c3[g] = p0;
    }
  }
  for (int g = 0; g < kGroups; ++g) {
    words02[g] = pair(c0[g], c2[g]);
    words13[g] = pair(c1[g], c3[g]);
  }
}

#if defined(EMU_LOOK_UP)

// With tables of 16 entries a shorter polynomial is enough.
alignas(64) constexpr float kInverse[16] = {1.0f,         0.914285719f, 0.864864886f, 0.820512831f, 0.780487776f,
                                            0.744186044f, 0.711111128f, 0.680851042f, 0.653061211f, 0.627451003f,
                                            0.603773594f, 0.581818163f, 0.561403513f, 0.542372882f, 0.524590135f,
                                            0.5f};  // of 1 + (i + 1/2) / 16, but 1 and 1/2 at the ends
alignas(64) constexpr float kTwiceLog[16] = {0.0f,          -0.179224312f, -0.290363967f, -0.39565146f,
                                             -0.495672405f, -0.590928435f, -0.681853116f, -0.768823445f,
                                             -0.852168858f, -0.932179391f, -1.009112f,    -1.08319461f,
                                             -1.15463066f,  -1.22360313f,  -1.29027605f,  -1.38629436f};  // 2 ln of it
alignas(64) constexpr float kCosine[16] = {1.0f,  0.923879504f,  0.707106769f,  0.382683426f,
                                           0.0f,  -0.382683426f, -0.707106769f, -0.923879504f,
                                           -1.0f, -0.923879504f, -0.707106769f, -0.382683426f,
                                           0.0f,  0.382683426f,  0.707106769f,  0.923879504f};  // of i 2 pi / 16
alignas(64) constexpr float kSine[16] = {
    0.0f, 0.382683426f,  0.707106769f,  0.923879504f,  1.0f,  0.923879504f,  0.707106769f,  0.382683426f,
    0.0f, -0.382683426f, -0.707106769f, -0.923879504f, -1.0f, -0.923879504f, -0.707106769f, -0.382683426f};

// sqrt(-2 ln u), u = ((x >> 8) + 1) 2^-24. The ends of the table keep the logarithm accurate near u = 1 too: there it
// is that of 1 + r alone, because what stands for the exponent cancels to 0.
inline F box_muller_radius(I words) {
  const F k = to_float(add_int(shift_right<8>(words), set_int(1)));
  const I place = shift_right<19>(bits(k));  // its low 4 bits: the first of the mantissa
  const F exponent = subtract(set(24.0f), exponent_of(k));
  const F r = multiply_add(mantissa_of(k), look_up(load(kInverse), place), set(-1.0f));
  const F base = multiply_add(exponent, set(1.38629436f), look_up(load(kTwiceLog), place));  // 2 ln 2
  F poly = set(0.48078507f);  // -2 ln(1 + r) to 3e-8 for r from -1/32 to 1/16
  poly = multiply_add(poly, r, set(-0.66684837f));
  poly = multiply_add(poly, r, set(1.0f));
  poly = multiply_add(poly, r, set(-2.0f));
  return square_root(multiply_add(poly, r, base));
}

// cos and sin of 2 pi u, from those of the nearest sixteenth of a turn and of the rest.
inline void box_muller_angle(I words, F& cosine, F& sine) {
  const I place = shift_right<28>(add_int(words, set_int(1 << 27)));
  const I rest = shift_right_signed<12>(shift_left<4>(words));
  const F step = set(3.7450703e-7f);  // 2 pi 2^-24
  const F angle = multiply_add(to_float(rest), step, step);
  const F z = multiply(angle, angle);
  const F s = multiply_add(multiply(angle, z), multiply_add(z, set(8.3333333e-3f), set(-0.16666667f)), angle);
  F c = multiply_add(z, set(-1.3888889e-3f), set(4.1666667e-2f));
  c = multiply(multiply_add(c, z, set(-0.5f)), z);  // less 1
  const F near_cosine = look_up(load(kCosine), place);
  const F near_sine = look_up(load(kSine), place);
  cosine = subtract_product(multiply_add(near_cosine, c, near_cosine), near_sine, s);
  sine = multiply_add(near_cosine, s, multiply_add(near_sine, c, near_sine));
}

#else

// sqrt(-2 ln u), u = ((x >> 8) + 1) 2^-24. The integer is exact as a float, so the logarithm is accurate near u = 1
// too.
inline F box_muller_radius(I words) {
  const F k = to_float(add_int(shift_right<8>(words), set_int(1)));
  return square_root(multiply(logarithm_scaled<24>(k), set(-2.0f)));
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

#endif

template <int kGroups>
inline void lanes_of_normals(const Counter& counter, const RoundKeys& keys, const Blocks<kGroups>& blocks, F* out) {
  I words02[kGroups];
  I words13[kGroups];
  philox_lanes<kGroups>(counter, keys, blocks, words02, words13);
  for (int g = 0; g < kGroups; ++g) {
    const F radius = box_muller_radius(words02[g]);
    F cosine;
    F sine;
    box_muller_angle(words13[g], cosine, sine);
    cosine = multiply(cosine, radius);
    sine = multiply(sine, radius);
    out[2 * g] = unpack_low(cosine, sine);
    out[2 * g + 1] = unpack_high(cosine, sine);
  }
}
