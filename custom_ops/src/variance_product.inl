// The variances of read noise, sums of q_k x_k^2 over the cells of a column, included by kernels.inl. They need no more
// than the accuracy of a standard deviation, so q and x^2 are whole multiples of a step: of a column, of a row. Steps
// keep the sum over all cells exact. Codes have one digit, or two in a row where one input stands out: there one cell
// may be nearly all of the variance. Where the processor multiplies bytes, digits are bytes; elsewhere codes are
// floats.

constexpr float kUneven = 64.0f;                            // times the mean: the largest square stands out
constexpr float kLargestWeight = 127.0f * 256.0f + 127.0f;  // of two digits
constexpr float kLargestSquare = 255.0f;
constexpr float kLargestWideSquare = 65535.0f;

// Codes of some columns of q, and what one of them is worth: of both digits, and of the high one alone.
struct WeightCodes {
  F factor;
  F wide_step;
  F step;

  WeightCodes(const float* q, int64_t stride, int64_t depth, int64_t columns) {
    F most = set(0.0f);
    F total = set(0.0f);
    for (int64_t k = 0; k < depth; ++k) {
      const F v = load_some(q + k * stride, columns);
      most = maximum(most, v);
      total = add(total, v);
    }
    factor = where_less(set(0.0f), most, divide(set(kLargestWeight), most), set(0.0f));
    F all = set(0.0f);
    F high = set(0.0f);
    for (int64_t k = 0; k < depth; ++k) {
      const F v = load_some(q + k * stride, columns);
      all = add(all, code(v));
      high = add(high, high_digit(v));
    }
    const F none = multiply(total, set(0.0f));  // NaN stays visible
    wide_step = where_less(set(0.0f), all, divide(total, all), none);
    step = where_less(set(0.0f), high, divide(total, high), none);
  }

  F code(F q) const { return round_even(multiply(q, factor)); }
  // What is left once the low digit is a signed byte; all these numbers are exact.
  F high_digit(F q) const { return floor_of(multiply(add(code(q), set(128.0f)), set(1.0f / 256.0f))); }
};

int64_t rounded_size(int64_t depth, int64_t columns) { return 2 * packed_size(depth, columns); }

// Panel after panel, each of high digits, then of whole codes.
void pack_rounded(const float* q, int64_t stride, int64_t depth, int64_t columns, float* out) {
  for (int64_t first = 0; first < columns; first += kPanel, out += 2 * depth * kPanel) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t some = std::clamp<int64_t>(columns - first - v * kWidth, 0, kWidth);
      const float* from = q + first + v * kWidth;
      const WeightCodes codes(from, stride, depth, some);
      for (int64_t k = 0; k < depth; ++k) {
        const F value = load_some(from + k * stride, some);
        float* to = out + k * kPanel + v * kWidth;
        store(to, multiply(codes.high_digit(value), codes.step));
        store(to + depth * kPanel, multiply(codes.code(value), codes.wide_step));
      }
    }
  }
}

// Codes of x^2 in a row.
struct SquareCodes {
  float factor = 0;
  float step = 0;
  bool wide = false;

  // each(i, some) gives some values of x, from i on.
  template <typename Each>
  SquareCodes(int64_t count, const Each& each) {
    F most = set(0.0f);
    F total = set(0.0f);
    for (int64_t i = 0; i < count; i += kWidth) {
      const F x = each(i, std::min<int64_t>(kWidth, count - i));
      most = maximum(most, multiply(x, x));
      total = multiply_add(x, x, total);
    }
    const float square = largest(most);
    const float all = sum(total);
    if (!(square > 0)) return;
    wide = square * static_cast<float>(count) > kUneven * all;
    factor = (wide ? kLargestWideSquare : kLargestSquare) / square;
    F codes = set(0.0f);
    for (int64_t i = 0; i < count; i += kWidth) {
      codes = add(codes, code(each(i, std::min<int64_t>(kWidth, count - i))));
    }
    step = all / sum(codes);
  }

  F code(F x) const { return round_even(multiply(multiply(x, x), set(factor))); }
};

bool round_squares(const float* x, int64_t count, float* out) {
  const auto each = [&](int64_t i, int64_t some) { return load_some(x + i, some); };
  const SquareCodes squares(count, each);
  const F step = set(squares.step);
  for (int64_t i = 0; i < count; i += kWidth) {
    const int64_t some = std::min<int64_t>(kWidth, count - i);
    store_some(out + i, some, multiply(squares.code(each(i, some)), step));
  }
  return squares.wide;
}

void multiply_rounded(const float* a, int64_t rows, const float* packed, int64_t depth, int64_t columns, bool wide,
                      float* c) {
  for (int64_t first = 0; first < columns; first += kPanel, packed += 2 * depth * kPanel) {
    multiply_packed(a, depth, rows, packed + (wide ? depth * kPanel : 0), depth, std::min(kPanel, columns - first),
                    c + first, columns, nullptr);
  }
}

#if defined(EMU_BYTE_PRODUCTS)

constexpr int64_t kVarianceHead = 2;  // vectors before the digits of a panel: steps of high digits and of codes
constexpr int kVarianceRowsAtOnce = 12;

int64_t digits_size(int64_t depth) { return (depth + kRowsPerStep - 1) / kRowsPerStep * kWidth; }
int64_t variance_panel_size(int64_t depth) { return kVarianceHead * kWidth + 2 * digits_size(depth); }

int64_t packed_variance_size(int64_t depth, int64_t columns) {
  return (columns + kWidth - 1) / kWidth * variance_panel_size(depth);
}

// Panels of kWidth columns: steps, all high digits, all low ones, four rows in one vector.
void pack_variances(const float* q, int64_t stride, int64_t depth, int64_t columns, float* out) {
  const I byte = set_int(0xFF);
  for (int64_t first = 0; first < columns; first += kWidth, out += variance_panel_size(depth)) {
    const int64_t some = std::min<int64_t>(kWidth, columns - first);
    const WeightCodes codes(q + first, stride, depth, some);
    store(out, codes.step);
    store(out + kWidth, codes.wide_step);
    float* place = out + kVarianceHead * kWidth;
    for (int64_t k = 0; k < depth; k += kRowsPerStep, place += kWidth) {
      I low = set_int(0);
      I high = set_int(0);
      const auto add_row = [&](auto shift) {
        constexpr int kShift = decltype(shift)::value;
        const int64_t row = k + kShift / 8;
        if (row >= depth) return;
        const I code = to_int(codes.code(load_some(q + first + row * stride, some)));
        low = or_int(low, shift_left<kShift>(and_int(code, byte)));
        high = or_int(high, shift_left<kShift>(shift_right<8>(add_int(code, set_int(128)))));
      };
      add_row(std::integral_constant<int, 0>());
      add_row(std::integral_constant<int, 8>());
      add_row(std::integral_constant<int, 16>());
      add_row(std::integral_constant<int, 24>());
      store_ints(place, high);
      store_ints(place + digits_size(depth), low);
    }
  }
}

EncodedSquares encode_squares(const float* x, const uint8_t* x_codes, int64_t count, uint8_t* codes, uint8_t* low) {
  const auto each = [&](int64_t i, int64_t some) {
    if (x != nullptr) return load_some(x + i, some);
    return subtract(to_float(load_some_bytes(x_codes + i, some, 128)), set(128.0f));
  };
  const SquareCodes squares(count, each);
  for (int64_t i = 0; i < count; i += kWidth) {
    const int64_t some = std::min<int64_t>(kWidth, count - i);
    const I code = to_int(squares.code(each(i, some)));
    store_some_bytes(codes + i, some, squares.wide ? shift_right<8>(code) : code);
    if (squares.wide) store_some_bytes(low + i, some, and_int(code, set_int(0xFF)));
  }
  const int64_t padded = (count + kRowsPerStep - 1) / kRowsPerStep * kRowsPerStep;
  std::fill(codes + count, codes + padded, uint8_t{0});
  if (squares.wide) std::fill(low + count, low + padded, uint8_t{0});
  return {squares.step, squares.wide};
}

// kRows rows of C in one panel, by the high digits of the weights, or by both.
template <int kRows, int kDigitsUsed>
void multiply_variance_panel(const uint8_t* a, int64_t a_stride, const float* b, int64_t depth, const float* steps,
                             int64_t columns, bool add_to, float* c, int64_t c_stride) {
  I total[kRows][kDigitsUsed];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {  // in full, here and below, or the totals go through memory
#pragma GCC unroll 4
    for (int d = 0; d < kDigitsUsed; ++d) total[r][d] = set_int(0);
  }
  const F scale = load(b + (kDigitsUsed - 1) * kWidth);
  b += kVarianceHead * kWidth;
  const int64_t low = digits_size(depth);
  for (int64_t k = 0; k < depth; k += kRowsPerStep, b += kWidth) {
    I digits[kDigitsUsed];
    for (int d = 0; d < kDigitsUsed; ++d) digits[d] = load_ints(b + d * low);
    for (int r = 0; r < kRows; ++r) {
      int32_t codes;
      std::memcpy(&codes, a + r * a_stride + k, sizeof codes);
      for (int d = 0; d < kDigitsUsed; ++d) total[r][d] = add_byte_products(total[r][d], set_int(codes), digits[d]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    F v = to_float(total[r][0]);
    if (kDigitsUsed == 2) v = multiply_add(v, set(256.0f), to_float(total[r][kDigitsUsed - 1]));
    v = multiply(v, multiply(scale, set(steps[r])));
    float* out = c + r * c_stride;
    if (add_to) v = add(v, load_some(out, columns));
    store_some(out, columns, v);
  }
}

using MultiplyVariancePanel = void (*)(const uint8_t*, int64_t, const float*, int64_t, const float*, int64_t, bool,
                                       float*, int64_t);

template <int kDigitsUsed, int... kRows>
constexpr std::array<MultiplyVariancePanel, sizeof...(kRows)> variance_panel_functions(
    std::integer_sequence<int, kRows...>) {
  return {multiply_variance_panel<kRows + 1, kDigitsUsed>...};
}

void multiply_variances(const uint8_t* a, int64_t a_stride, int64_t rows, const float* packed, int64_t depth,
                        int64_t columns, const float* steps, bool wide, bool add_to, float* c) {
  static constexpr auto kHigh = variance_panel_functions<1>(std::make_integer_sequence<int, kVarianceRowsAtOnce>());
  static constexpr auto kBoth = variance_panel_functions<2>(std::make_integer_sequence<int, kVarianceRowsAtOnce>());
  const auto& functions = wide ? kBoth : kHigh;
  for (int64_t first = 0; first < columns; first += kWidth, packed += variance_panel_size(depth)) {
    const int64_t width = std::min<int64_t>(kWidth, columns - first);
    for (int64_t row = 0; row < rows;) {
      const int64_t count = std::min<int64_t>(kVarianceRowsAtOnce, rows - row);
      functions[static_cast<size_t>(count - 1)](a + row * a_stride, a_stride, packed, depth, steps + row, width, add_to,
                                                c + row * columns + first, columns);
      row += count;
    }
  }
}

#endif
