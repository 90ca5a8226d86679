#include "patches.h"

#include <algorithm>
#include <cstring>

#include "floats.h"

namespace emu {

namespace {

typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourPlaces __attribute__((vector_size(16)));

#if defined(__clang__)
#define EMU_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define EMU_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, FourPlaces{i, j, k, l})
#endif

inline Four load_four(const float* p) {
  Four v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store_four(float* p, Four v) { std::memcpy(p, &v, sizeof v); }

// Four rows of four.
inline void transpose_four(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
  const Four a = load_four(in);
  const Four b = load_four(in + in_stride);
  const Four c = load_four(in + 2 * in_stride);
  const Four d = load_four(in + 3 * in_stride);
  const Four ab_low = EMU_SHUFFLE(a, b, 0, 4, 1, 5);
  const Four ab_high = EMU_SHUFFLE(a, b, 2, 6, 3, 7);
  const Four cd_low = EMU_SHUFFLE(c, d, 0, 4, 1, 5);
  const Four cd_high = EMU_SHUFFLE(c, d, 2, 6, 3, 7);
  store_four(out, EMU_SHUFFLE(ab_low, cd_low, 0, 1, 4, 5));
  store_four(out + out_stride, EMU_SHUFFLE(ab_low, cd_low, 2, 3, 6, 7));
  store_four(out + 2 * out_stride, EMU_SHUFFLE(ab_high, cd_high, 0, 1, 4, 5));
  store_four(out + 3 * out_stride, EMU_SHUFFLE(ab_high, cd_high, 2, 3, 6, 7));
}

// A few floats; a call of memcpy would cost more.
inline void copy_floats(const float* in, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) store_four(out + i, load_four(in + i));
  for (; i < count; ++i) out[i] = in[i];
}

inline void zero_floats(int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) store_four(out + i, Four{});
  for (; i < count; ++i) out[i] = 0.0f;
}

}  // namespace

void transpose(const float* in, int64_t in_stride, int64_t rows, int64_t columns, float* out, int64_t out_stride) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    int64_t c = 0;
    for (; c + 4 <= columns; c += 4) {
      transpose_four(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride);
    }
    for (; c < columns; ++c) {
      for (int64_t i = r; i < r + 4; ++i) out[c * out_stride + i] = in[i * in_stride + c];
    }
  }
  for (; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) out[c * out_stride + r] = in[r * in_stride + c];
  }
}

int64_t Patches::positions_along(const WindowAxis& axis, int64_t size) {
  const int64_t rest = size + axis.before + axis.after - axis.dilation * (axis.size - 1) - 1;
  return rest < 0 ? 0 : rest / axis.stride + 1;
}

Patches::Patches(const std::vector<WindowAxis>& window, const std::vector<int64_t>& sizes, int64_t channels)
    : channels_(channels) {
  const size_t unused = 3 - window.size();
  for (size_t i = 0; i < window.size(); ++i) {
    axes_[unused + i] = {window[i], sizes[i], positions_along(window[i], sizes[i])};
  }
  // Where a window of 1 meets every number there is, all axes are as good as one.
  const auto plain = [](const Axis& axis) {
    return axis.window.size == 1 && axis.window.stride == 1 && axis.window.before == 0 && axis.window.after == 0;
  };
  if (std::all_of(axes_, axes_ + 3, plain)) {
    axes_[2].in = axes_[2].out = axes_[0].in * axes_[1].in * axes_[2].in;
    axes_[0] = axes_[1] = Axis();
  }
  for (const Axis& axis : axes_) {
    places_ *= axis.window.size;
    positions_ *= axis.out;
  }
  for (int64_t k = 0; k < places_; ++k) {
    Place place{};
    int64_t rest = k;
    for (int i = 2; i >= 0; --i) {
      place.offset[i] = rest % axes_[i].window.size * axes_[i].window.dilation - axes_[i].window.before;
      rest /= axes_[i].window.size;
    }
    window_.push_back(place);
  }
}

void Patches::pad(const float* image, float* out) const {
  const Axis& z = axes_[0];
  const Axis& y = axes_[1];
  const Axis& x = axes_[2];
  for (int64_t channel = 0; channel < channels_; ++channel) {
    for (int64_t in_z = -z.window.before; in_z < z.in + z.window.after; ++in_z) {
      for (int64_t in_y = -y.window.before; in_y < y.in + y.window.after; ++in_y, out += x.padded()) {
        if (in_z < 0 || in_z >= z.in || in_y < 0 || in_y >= y.in) {
          zero_floats(x.padded(), out);
          continue;
        }
        zero_floats(x.window.before, out);
        copy_floats(image + ((channel * z.in + in_z) * y.in + in_y) * x.in, x.in, out + x.window.before);
        zero_floats(x.window.after, out + x.window.before + x.in);
      }
    }
  }
}

std::vector<int64_t> Patches::column_offsets() const {
  std::vector<int64_t> offsets;
  for (int64_t k = 0; k < depth(); ++k) {
    const Place at = place(k);
    int64_t offset = at.channel;
    for (int i = 0; i < 3; ++i) offset = offset * axes_[i].padded() + at.offset[i] + axes_[i].window.before;
    offsets.push_back(offset);
  }
  return offsets;
}

void Patches::cut(const float* image, int64_t first, int64_t count, const Span& span, float* out) const {
  if (axes_[2].window.stride > 1) {
    cut_along(image, first, count, span, out);
    return;
  }
  // A part at a time, which stays near.
  constexpr int64_t kAtOnce = 64;
  Floats across(static_cast<size_t>(std::min(kAtOnce, span.size()) * count));
  for (int64_t k = span.begin; k < span.end; k += kAtOnce) {
    const Span part{k, std::min(span.end, k + kAtOnce)};
    cut_across(image, first, count, part, across.data(), count);
    transpose(across.data(), count, part.size(), count, out + (k - span.begin), span.size());
  }
}

void Patches::cut_columns(const float* image, int64_t first, int64_t count, float* out, int64_t stride) const {
  const Span all{0, depth()};
  if (axes_[2].window.stride == 1) {
    cut_across(image, first, count, all, out, stride);
    return;
  }
  constexpr int64_t kAtOnce = 32;
  Floats rows(static_cast<size_t>(std::min(kAtOnce, count) * all.end));
  for (int64_t begin = 0; begin < count; begin += kAtOnce) {
    const int64_t some = std::min(kAtOnce, count - begin);
    cut_along(image, first + begin, some, all, rows.data());
    transpose(rows.data(), all.end, some, all.end, out + begin, stride);
  }
}

void Patches::cut_panels(const float* image, int64_t first, int64_t count, int64_t panel, float* out) const {
  const Span all{0, depth()};
  for (int64_t begin = 0; begin < count; begin += panel, out += panel * all.end) {
    const int64_t some = std::min(panel, count - begin);
    cut_across(image, first + begin, some, all, out, panel);
    for (int64_t k = 0; some < panel && k < all.end; ++k) {
      std::fill(out + k * panel + some, out + (k + 1) * panel, 0.0f);
    }
  }
}

void Patches::cut_across(const float* image, int64_t first, int64_t count, const Span& span, float* out,
                         int64_t stride) const {
  const Axis& z = axes_[0];
  const Axis& y = axes_[1];
  const Axis& x = axes_[2];
  const int64_t first_column = first % x.out;
  const int64_t first_y = first / x.out % y.out;
  const int64_t first_z = first / x.out / y.out;
  for (int64_t k = span.begin; k < span.end; ++k, out += stride) {
    const Place at = place(k);
    const float* channel = image + at.channel * z.in * y.in * x.in;
    int64_t column = first_column;
    int64_t out_y = first_y;
    int64_t out_z = first_z;
    // Positions of one line after another: their numbers lie side by side.
    for (int64_t done = 0; done < count;) {
      const int64_t some = std::min(x.out - column, count - done);
      const int64_t in_y = out_y * y.window.stride + at.offset[1];
      const int64_t in_z = out_z * z.window.stride + at.offset[0];
      const int64_t in_x = column + at.offset[2];
      float* to = out + done;
      done += some;
      column = 0;
      if (++out_y == y.out) {
        out_y = 0;
        ++out_z;
      }
      if (in_y < 0 || in_y >= y.in || in_z < 0 || in_z >= z.in) {
        zero_floats(some, to);
        continue;
      }
      const int64_t begin = std::min(some, std::max<int64_t>(0, -in_x));
      const int64_t end = std::max(begin, std::min(some, x.in - in_x));
      if (begin > 0) zero_floats(begin, to);
      copy_floats(channel + (in_z * y.in + in_y) * x.in + in_x + begin, end - begin, to + begin);
      if (end < some) zero_floats(some - end, to + end);
    }
  }
}

void Patches::cut_along(const float* image, int64_t first, int64_t count, const Span& span, float* out) const {
  const Axis& z = axes_[0];
  const Axis& y = axes_[1];
  const Axis& x = axes_[2];
  for (int64_t position = first; position < first + count; ++position) {
    const int64_t corner_x = position % x.out * x.window.stride;
    const int64_t corner_y = position / x.out % y.out * y.window.stride;
    const int64_t corner_z = position / x.out / y.out * z.window.stride;
    for (int64_t k = span.begin; k < span.end;) {
      const Place at = place(k);
      const int64_t in_window = k % x.window.size;
      const int64_t some = std::min(x.window.size - in_window, span.end - k);
      const int64_t in_x = corner_x + at.offset[2];
      const int64_t in_y = corner_y + at.offset[1];
      const int64_t in_z = corner_z + at.offset[0];
      k += some;
      float* to = out;
      out += some;
      if (in_y < 0 || in_y >= y.in || in_z < 0 || in_z >= z.in) {
        zero_floats(some, to);
        continue;
      }
      const float* line = image + ((at.channel * z.in + in_z) * y.in + in_y) * x.in;
      const int64_t step = x.window.dilation;
      if (step == 1 && in_x >= 0 && in_x + some <= x.in) {
        copy_floats(line + in_x, some, to);
        continue;
      }
      for (int64_t i = 0; i < some; ++i) {
        const int64_t from = in_x + i * step;
        to[i] = from >= 0 && from < x.in ? line[from] : 0.0f;
      }
    }
  }
}

}  // namespace emu
