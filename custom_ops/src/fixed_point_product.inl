// C = A B for inputs that are codes of a DAC, included by kernels.inl. B is packed as fixed-point numbers of 24 bits,
// relative to the largest magnitude of each column, whose own rounding is as large; a number is three signed digits of
// 8 bits, and sums of codes times digits are exact up to kDeepestFixed rows. Panels of kWidth columns: what sums start
// with (because codes are stored plus 128) for each digit, the scale of each column, then four rows at a time: digit by
// digit, column by column, four bytes.

#if defined(EMU_BYTE_PRODUCTS)

constexpr int kDigits = 3;
constexpr int64_t kDeepestFixed = (int64_t{1} << 31) / (128 * 128) - 1;
constexpr float kLargestFixed = 8355711.0f;  // 127 (1 + 2^8 + 2^16)
constexpr float kSmallestScaled = 1e-30f;    // columns whose values are all below have fewer bits
constexpr int64_t kRowsPerStep = 4;          // of B, in one instruction
constexpr int kCodeRowsAtOnce = 8;           // of A
constexpr int64_t kFixedHead = kDigits + 1;  // vectors before the digits of a panel
constexpr int kFixedZero = 0x00808080;       // makes all digits unsigned
constexpr int kSigned = static_cast<int>(0x80808080u);

int64_t fixed_panel_size(int64_t depth) {
  return (kFixedHead + kDigits * ((depth + kRowsPerStep - 1) / kRowsPerStep)) * kWidth;
}

int64_t packed_fixed_size(int64_t depth, int64_t columns) {
  return (columns + kWidth - 1) / kWidth * fixed_panel_size(depth);
}

// One panel of up to kWidth columns.
void pack_fixed_panel(const float* b, int64_t stride, int64_t depth, int64_t columns, float* out) {
  F most = set(0.0f);
  F poison = set(0.0f);  // NaN where a value is infinite or NaN, so that it shows in what is read
  for (int64_t k = 0; k < depth; ++k) {
    const F v = load_some(b + k * stride, columns);
    most = maximum(most, absolute(v));
    poison = multiply_add(v, set(0.0f), poison);
  }
  const F scaled = where_less(most, set(kSmallestScaled), set(kSmallestScaled), most);
  const F factor = divide(set(kLargestFixed), scaled);
  float* head = out;
  float* place = out + kFixedHead * kWidth;
  I totals[kDigits] = {set_int(0), set_int(0), set_int(0)};  // of digits, times 128
  for (int64_t k = 0; k < depth; k += kRowsPerStep) {
    I rows[kRowsPerStep];
    for (int64_t r = 0; r < kRowsPerStep; ++r) {
      const F v = k + r < depth ? load_some(b + (k + r) * stride, columns) : set(0.0f);
      // Rounding may make the largest value one larger than fits.
      rows[r] = add_int(to_int(minimum(multiply(v, factor), set(kLargestFixed))), set_int(kFixedZero));
    }
    const auto digit = [&](auto shift) {
      constexpr int kShift = decltype(shift)::value;
      const I byte = set_int(0xFF);
      const I low = or_int(and_int(shift_right<kShift>(rows[0]), byte),
                           shift_left<8>(and_int(shift_right<kShift>(rows[1]), byte)));
      const I high = or_int(shift_left<16>(and_int(shift_right<kShift>(rows[2]), byte)),
                            shift_left<24>(and_int(shift_right<kShift>(rows[3]), byte)));
      const I bytes = xor_int(or_int(low, high), set_int(kSigned));
      totals[kShift / 8] = add_byte_products(totals[kShift / 8], set_int(kSigned), bytes);
      store_ints(place + kShift / 8 * kWidth, bytes);
    };
    digit(std::integral_constant<int, 0>());
    digit(std::integral_constant<int, 8>());
    digit(std::integral_constant<int, 16>());
    place += kDigits * kWidth;
  }
  for (int d = 0; d < kDigits; ++d) store_ints(head + d * kWidth, subtract_int(set_int(0), totals[d]));
  store(head + kDigits * kWidth, add(divide(scaled, set(kLargestFixed)), poison));
}

void pack_fixed(const float* b, int64_t stride, int64_t depth, int64_t columns, float* out) {
  for (int64_t first = 0; first < columns; first += kWidth) {
    pack_fixed_panel(b + first, stride, depth, std::min<int64_t>(kWidth, columns - first), out);
    out += fixed_panel_size(depth);
  }
}

// kRows rows of C in one panel.
template <int kRows>
void multiply_codes_panel(const uint8_t* a, int64_t a_stride, const float* b, int64_t depth, const float* steps,
                          int64_t columns, float* c, int64_t c_stride, float* peaks) {
  I total[kRows][kDigits];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {  // in full, here and below, or the totals go through memory
#pragma GCC unroll 4
    for (int d = 0; d < kDigits; ++d) total[r][d] = load_ints(b + d * kWidth);
  }
  const F scale = load(b + kDigits * kWidth);
  b += kFixedHead * kWidth;
  for (int64_t k = 0; k < depth; k += kRowsPerStep) {
    I digits[kDigits];
    for (int d = 0; d < kDigits; ++d) digits[d] = load_ints(b + d * kWidth);
    b += kDigits * kWidth;
    for (int r = 0; r < kRows; ++r) {
      int32_t codes;
      std::memcpy(&codes, a + r * a_stride + k, sizeof codes);
      for (int d = 0; d < kDigits; ++d) total[r][d] = add_byte_products(total[r][d], set_int(codes), digits[d]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const F base = set(256.0f);
    F v = multiply_add(to_float(total[r][2]), base, to_float(total[r][1]));
    v = multiply(multiply_add(v, base, to_float(total[r][0])), multiply(scale, set(steps[r])));
    if (columns == kWidth) {
      store(c + r * c_stride, v);
    } else {
      store_some(c + r * c_stride, columns, v);
    }
    if (peaks != nullptr) {  // columns that do not exist are 0
      store(peaks + r * kPeakLanes, maximum(load(peaks + r * kPeakLanes), absolute(v)));
    }
  }
}

using MultiplyCodesPanel = void (*)(const uint8_t*, int64_t, const float*, int64_t, const float*, int64_t, float*,
                                    int64_t, float*);

template <int... kRows>
constexpr std::array<MultiplyCodesPanel, sizeof...(kRows)> code_panel_functions(std::integer_sequence<int, kRows...>) {
  return {multiply_codes_panel<kRows + 1>...};
}

void multiply_codes(const uint8_t* a, int64_t a_stride, int64_t rows, const float* packed, int64_t depth,
                    int64_t columns, const float* steps, float* c, int64_t c_stride, float* peaks) {
  if (peaks != nullptr) std::fill(peaks, peaks + rows * kPeakLanes, 0.0f);
  static constexpr auto kFunctions = code_panel_functions(std::make_integer_sequence<int, kCodeRowsAtOnce>());
  for (int64_t first = 0; first < columns; first += kWidth) {
    const int64_t width = std::min<int64_t>(kWidth, columns - first);
    for (int64_t row = 0; row < rows;) {
      const int64_t count = std::min<int64_t>(kCodeRowsAtOnce, rows - row);
      kFunctions[static_cast<size_t>(count - 1)](a + row * a_stride, a_stride, packed, depth, steps + row, width,
                                                 c + row * c_stride + first, c_stride,
                                                 peaks == nullptr ? nullptr : peaks + row * kPeakLanes);
      row += count;
    }
    packed += fixed_panel_size(depth);
  }
  for (int64_t row = 0; peaks != nullptr && row < rows; ++row) {
    float* peak = peaks + row * kPeakLanes;
    *peak = largest(load(peak));
  }
}

// Codes from quantize_input's arithmetic, times sign, in lanes for take(i, some, code).
template <typename Take>
inline void for_each_code(const InputRow& row, float sign, const float* x, int64_t count, Take&& take) {
  const F inverse = set(row.inverse);
  const F inverse_step = set(static_cast<float>(row.steps / (2.0 * row.bound)));
  const F bound = set(row.bound);
  const F half = set(static_cast<float>(row.steps / 2));
  const F signs = set(sign);
  for (int64_t i = 0; i < count; i += kWidth) {
    const int64_t some = std::min<int64_t>(kWidth, count - i);
    const F v = multiply(some == kWidth ? load(x + i) : load_some(x + i, some), inverse);
    const F code = row.offset_binary ? subtract(round_even(multiply(add(v, bound), inverse_step)), half)
                                     : round_even(multiply(v, inverse_step));
    take(i, some, multiply(clamp(code, subtract(set(0.0f), half), half), signs));
  }
}

// Stores code + 128 as bytes, at most 255.
inline void store_codes(uint8_t* out, int64_t some, F code) {
  store_some_bytes(out, some, add_int(to_int(code), set_int(128)));
}

EncodedRow encode_input(const InputRow& row, const float* x, int64_t count, uint8_t* codes, uint8_t* rest) {
  F highest = set(0.0f);
  F lowest = set(0.0f);
  F squares = set(0.0f);
  for_each_code(row, 1.0f, x, count, [&](int64_t i, int64_t some, F code) {
    store_codes(codes + i, some, code);
    highest = maximum(highest, code);
    lowest = minimum(lowest, code);
    squares = multiply_add(code, code, squares);
  });
  const int64_t padded = (count + kRowsPerStep - 1) / kRowsPerStep * kRowsPerStep;
  std::fill(codes + count, codes + padded, uint8_t{0});  // meets digits that are 0
  EncodedRow encoded;
  encoded.squares = sum(squares);
  if (row.steps / 2 <= 127 || largest(highest) <= 127) return encoded;
  if (-largest(subtract(set(0.0f), lowest)) >= -127) {  // 128 does not fit, -128 does
    encoded.sign = -1;
    for_each_code(row, -1.0f, x, count, [&](int64_t i, int64_t some, F code) { store_codes(codes + i, some, code); });
    return encoded;
  }
  encoded.has_rest = true;
  std::fill(rest, rest + padded, uint8_t{128});
  for_each_code(row, 1.0f, x, count, [&](int64_t i, int64_t some, F code) {
    store_codes(rest + i, some, maximum(subtract(code, set(127.0f)), set(0.0f)));
  });
  return encoded;
}

#endif
