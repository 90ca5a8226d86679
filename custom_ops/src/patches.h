// Convolutions as products: rows cut out of images by a window, docs/operators.md "Windows". A block of rows at a time,
// so that no more than this block is ever in memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "structure.h"

namespace emu {

// out [columns, rows] = in [rows, columns] transposed; strides are those of rows in memory.
void transpose(const float* in, int64_t in_stride, int64_t rows, int64_t columns, float* out, int64_t out_stride);

// Rows [positions, depth] that a window meets at its positions in an image [channels, sizes..]; depth counts channels,
// then places in the window, positions count in row-major order.
class Patches {
 public:
  // sizes: of the image along each axis of the window, each large enough for a position.
  Patches(const std::vector<WindowAxis>& window, const std::vector<int64_t>& sizes, int64_t channels);

  // Positions of a window along an axis of that size; 0 or less where it does not fit.
  static int64_t positions_along(const WindowAxis& axis, int64_t size);

  int64_t positions() const { return positions_; }
  int64_t depth() const { return channels_ * places_; }
  int64_t image_size() const { return channels_ * axes_[0].in * axes_[1].in * axes_[2].in; }

  // Where windows move by one, a line of positions is a line of the padded image, begun elsewhere for each column.
  // Whether that is so, and the padded image small.
  bool has_lines() const { return axes_[2].window.stride == 1 && padded_size() <= kMostPadded; }
  int64_t padded_size() const { return channels_ * axes_[0].padded() * axes_[1].padded() * axes_[2].padded(); }
  void pad(const float* image, float* out) const;
  int64_t lines() const { return axes_[0].out * axes_[1].out; }
  int64_t line_length() const { return axes_[2].out; }
  // Of a line in the padded image, and of column k from there.
  int64_t line_start(int64_t line) const {
    const int64_t z = line / axes_[1].out * axes_[0].window.stride;
    const int64_t y = line % axes_[1].out * axes_[1].window.stride;
    return (z * axes_[1].padded() + y) * axes_[2].padded();
  }
  std::vector<int64_t> column_offsets() const;

  // Columns `span` of rows [first, first + count), one row after another: [count, span].
  void cut(const float* image, int64_t first, int64_t count, const Span& span, float* out) const;
  // All columns, each with these rows side by side: [depth, count]; columns `stride` apart.
  void cut_columns(const float* image, int64_t first, int64_t count, float* out, int64_t stride) const;
  // All columns of these rows as kernels().float_packing has a matrix [depth, count]: in panels of so many rows. For
  // windows that move by one along the last axis.
  void cut_panels(const float* image, int64_t first, int64_t count, int64_t panel, float* out) const;

 private:
  struct Axis {
    WindowAxis window;
    int64_t in = 1;   // size of the image
    int64_t out = 1;  // positions
    int64_t padded() const { return in + window.before + window.after; }
  };
  static constexpr int64_t kMostPadded = 1 << 20;
  // One place of the window in one channel: how far from the corner of a position.
  struct Place {
    int64_t channel;
    int64_t offset[3];
  };

  Place place(int64_t k) const {
    Place result = window_[static_cast<size_t>(k % places_)];
    result.channel = k / places_;
    return result;
  }
  // [span, count] instead of [count, span], rows `stride` apart: for windows that move by one.
  void cut_across(const float* image, int64_t first, int64_t count, const Span& span, float* out, int64_t stride) const;
  void cut_along(const float* image, int64_t first, int64_t count, const Span& span, float* out) const;

  Axis axes_[3];  // the last ones are those of the window
  int64_t channels_;
  int64_t places_ = 1;
  int64_t positions_ = 1;
  std::vector<Place> window_;  // of one channel
};

}  // namespace emu
