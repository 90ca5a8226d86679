// C = A B for the loops of kernels.inl, which includes this file. B is packed once and read many times: panels of
// kPanel columns, each row of a panel contiguous, the last panel filled up with zeros.

constexpr int kVectors = 2;  // of a panel
constexpr int64_t kPanel = kVectors * kWidth;
// As many rows as leave registers for one row of a panel and one broadcast value.
constexpr int kRowsAtOnce = kWidth == 16 ? 12 : kWidth == 8 ? 6 : 4;
// Rows of a panel that stay near while all rows of A pass by. As many as onnxruntime adds up before it goes on (for
// weights that it has packed), so that exact products equal its own to the bit.
constexpr int64_t kDepthAtOnce = 256;

int64_t packed_size(int64_t depth, int64_t columns) { return depth * ((columns + kPanel - 1) / kPanel) * kPanel; }

void pack(const float* b, int64_t stride, int64_t depth, int64_t columns, float* out) {
  for (int64_t first = 0; first < columns; first += kPanel) {
    const int64_t width = std::min(kPanel, columns - first);
    for (int64_t k = 0; k < depth; ++k) {
      const float* from = b + k * stride + first;
      if (width == kPanel) {
        for (int v = 0; v < kVectors; ++v) store(out + v * kWidth, load(from + v * kWidth));
      } else {
        std::copy(from, from + width, out);
        std::fill(out + width, out + kPanel, 0.0f);
      }
      out += kPanel;
    }
  }
}

// kRows rows of C in kUsed vectors of one panel; columns is how many of them exist. peaks, if given, holds kPeakLanes
// floats for each row: the largest magnitude met so far in each lane.
template <int kRows, int kUsed>
void multiply_panel(const float* a, int64_t a_stride, const float* b, int64_t depth, int64_t columns, bool add_to,
                    float* c, int64_t c_stride, float* peaks) {
  F total[kRows][kUsed];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {  // in full, here and below, or the totals go through memory
#pragma GCC unroll 4
    for (int v = 0; v < kUsed; ++v) total[r][v] = set(0.0f);
  }
  for (int64_t k = 0; k < depth; ++k) {
    F row[kUsed];
    for (int v = 0; v < kUsed; ++v) row[v] = load(b + k * kPanel + v * kWidth);
    for (int r = 0; r < kRows; ++r) {
      const F value = set(a[r * a_stride + k]);
      for (int v = 0; v < kUsed; ++v) total[r][v] = multiply_add(value, row[v], total[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    float* out = c + r * c_stride;
    if (columns == kUsed * kWidth) {
      for (int v = 0; v < kUsed; ++v) {
        float* place = out + v * kWidth;
        if (add_to) total[r][v] = add(load(place), total[r][v]);
        store(place, total[r][v]);
      }
    } else {
      for (int v = 0; v < kUsed; ++v) {
        const int64_t some = std::min<int64_t>(kWidth, columns - v * kWidth);
        if (add_to) total[r][v] = add(load_some(out + v * kWidth, some), total[r][v]);
        store_some(out + v * kWidth, some, total[r][v]);
      }
    }
    if (peaks != nullptr) {  // columns that do not exist are 0
      F peak = load(peaks + r * kPeakLanes);
      for (int v = 0; v < kUsed; ++v) peak = maximum(peak, absolute(total[r][v]));
      store(peaks + r * kPeakLanes, peak);
    }
  }
}

using MultiplyPanel = void (*)(const float*, int64_t, const float*, int64_t, int64_t, bool, float*, int64_t, float*);

template <int kUsed, int... kRows>
constexpr std::array<MultiplyPanel, sizeof...(kRows)> panel_functions(std::integer_sequence<int, kRows...>) {
  return {multiply_panel<kRows + 1, kUsed>...};
}

void multiply_packed(const float* a, int64_t a_stride, int64_t rows, const float* packed, int64_t depth,
                     int64_t columns, float* c, int64_t c_stride, float* peaks) {
  if (peaks != nullptr) std::fill(peaks, peaks + rows * kPeakLanes, 0.0f);
  static constexpr auto kWhole = panel_functions<kVectors>(std::make_integer_sequence<int, kRowsAtOnce>());
  static constexpr auto kHalf = panel_functions<1>(std::make_integer_sequence<int, kRowsAtOnce>());
  for (int64_t k = 0; k < depth; k += kDepthAtOnce) {
    const int64_t part = std::min(kDepthAtOnce, depth - k);
    const bool last = k + part == depth;
    for (int64_t first = 0; first < columns; first += kPanel) {
      const int64_t width = std::min(kPanel, columns - first);
      const auto& functions = width > kWidth ? kWhole : kHalf;
      const float* b = packed + first * depth + k * kPanel;
      for (int64_t row = 0; row < rows;) {
        const int64_t count = std::min<int64_t>(kRowsAtOnce, rows - row);
        functions[static_cast<size_t>(count - 1)](a + row * a_stride + k, a_stride, b, part, width, k > 0,
                                                  c + row * c_stride + first, c_stride,
                                                  last && peaks != nullptr ? peaks + row * kPeakLanes : nullptr);
        row += count;
      }
    }
  }
  for (int64_t row = 0; peaks != nullptr && row < rows; ++row) {
    float* peak = peaks + row * kPeakLanes;
    *peak = largest(load(peak));
  }
  if (depth == 0) {
    for (int64_t row = 0; row < rows; ++row) std::fill(c + row * c_stride, c + row * c_stride + columns, 0.0f);
  }
}
