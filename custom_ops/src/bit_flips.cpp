#include "bit_flips.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <mutex>

#include "kernels.h"
#include "philox.h"

namespace emu {

namespace {

constexpr int64_t kChunk = 4096;            // elements whose flips share one sequence of draws
constexpr int64_t kChunksPerTask = 16;      // enough that handing out a task costs nothing beside it
constexpr int64_t kRangePerTask = 1 << 18;  // elements
constexpr int64_t kDataBits = 64;           // of a SECDED word
constexpr int64_t kWordBits = 72;           // with check bits

// The parity-check matrix of a word: a column of odd weight for each bit, and the bit of each column (-1: none).
struct Parity {
  int column[kWordBits];
  int bit_of[256];
};

const Parity& parity() {
  static const Parity instance = [] {
    Parity made;
    int next = 0;
    for (int number = 0; number < 256; ++number) {
      int ones = 0;
      for (int bit = 0; bit < 8; ++bit) ones += number >> bit & 1;
      if (ones == 3) made.column[next++] = number;
    }
    for (int i = 0; i < 8; ++i) made.column[next++] = (31 << i | 31 >> (8 - i)) & 255;
    for (int i = 0; i < 8; ++i) made.column[next++] = 1 << i;
    std::fill(std::begin(made.bit_of), std::end(made.bit_of), -1);
    for (int bit = 0; bit < kWordBits; ++bit) made.bit_of[made.column[bit]] = bit;
    return made;
  }();
  return instance;
}

// What happens to one element.
struct Change {
  int64_t element;
  uint32_t bits;  // that flip
  bool zero;      // or it stands for 0
};

// The bits of one chunk that flip at random, in ascending order.
class Draws {
 public:
  Draws(const BitFlips& flips, double log_keep, int64_t chunk) : log_keep_(log_keep) {
    counter_.key0 = flips.seed;
    counter_.c1 = static_cast<uint32_t>(chunk);
    counter_.c2 = flips.array;
    counter_.c3 = kBitFlips;
  }

  // The next bit after `bit`.
  int64_t after(int64_t bit) {
    if (draw_ % 2 == 0) philox(counter_, draw_ / 2, words_);
    const uint32_t* pair = words_ + draw_ % 2 * 2;
    ++draw_;
    const uint64_t fraction = (static_cast<uint64_t>(pair[0] >> 5) << 26) + (pair[1] >> 6) + 1;
    const double u = static_cast<double>(fraction) * 0x1p-53;
    // The distance to the next of many independent events is geometrically distributed.
    const double distance = 1 + std::floor(std::log(u) / log_keep_);
    return bit + static_cast<int64_t>(std::min(distance, 0x1p60));
  }

 private:
  double log_keep_;
  Counter counter_;
  uint64_t draw_ = 0;
  uint32_t words_[4] = {};
};

// Finds what changes, chunk by chunk.
class Changes {
 public:
  explicit Changes(const BitFlips& flips) : flips_(flips), log_keep_(std::log1p(-flips.probability)) {
    for (int bit = 0; bit < flips.bits; ++bit) {
      if ((flips.mask >> bit & 1) != 0) positions_.push_back(bit);
    }
    list_ = flips.list;
    std::sort(list_.begin(), list_.end());
  }

  // Changes of elements [first, last), the elements of a chunk, one for each element.
  void find(int64_t first, int64_t last, std::vector<Change>* changes) const {
    changes->clear();
    if (flips_.probability > 0 && flips_.protection == FaultProtection::kNone) {
      unprotected(first, last, changes);
    } else if (flips_.probability > 0) {
      secded(first, last, changes);
    }
    listed(first, last, changes);
  }

 private:
  static void flip(int64_t element, int bit, std::vector<Change>* changes) {
    if (changes->empty() || changes->back().element != element) changes->push_back({element, 0, false});
    changes->back().bits ^= uint32_t{1} << bit;
  }

  void listed(int64_t first, int64_t last, std::vector<Change>* changes) const {
    auto fault = std::lower_bound(list_.begin(), list_.end(), first * 256);
    const size_t random = changes->size();
    for (; fault != list_.end() && *fault < last * 256; ++fault) {
      const int64_t bit = *fault % 256;
      if (bit >= flips_.bits) continue;
      const auto end = changes->begin() + static_cast<std::ptrdiff_t>(random);
      const auto before = std::lower_bound(changes->begin(), end, *fault / 256,
                                           [](const Change& each, int64_t e) { return each.element < e; });
      if (before != end && before->element == *fault / 256) {
        before->bits ^= uint32_t{1} << bit;
      } else {
        flip(*fault / 256, static_cast<int>(bit), changes);
      }
    }
  }

  void unprotected(int64_t first, int64_t last, std::vector<Change>* changes) const {
    const auto width = static_cast<int64_t>(positions_.size());
    const int64_t end = (last - first) * width;
    Draws draws(flips_, log_keep_, first / kChunk);
    for (int64_t bit = draws.after(-1); bit < end; bit = draws.after(bit)) {
      flip(first + bit / width, positions_[static_cast<size_t>(bit % width)], changes);
    }
  }

  void secded(int64_t first, int64_t last, std::vector<Change>* changes) const {
    const int64_t elements_of_word = kDataBits / flips_.bits;
    const int64_t words = (last - first + elements_of_word - 1) / elements_of_word;
    const int64_t end = words * kWordBits;
    Draws draws(flips_, log_keep_, first / kChunk);
    int64_t bit = draws.after(-1);
    while (bit < end) {
      const int64_t word = bit / kWordBits;
      uint64_t data = 0;
      int syndrome = 0;
      for (; bit / kWordBits == word; bit = draws.after(bit)) {
        if (bit % kWordBits < kDataBits) data ^= uint64_t{1} << (bit % kWordBits);
        syndrome ^= parity().column[bit % kWordBits];
      }
      const int repaired = parity().bit_of[syndrome];
      if (repaired >= 0 && repaired < kDataBits) data ^= uint64_t{1} << repaired;
      const bool detected = syndrome != 0 && repaired < 0;
      const int64_t begin = first + word * elements_of_word;
      for (int64_t element = begin; element < std::min(begin + elements_of_word, last); ++element) {
        const uint64_t bits = data >> ((element - begin) * flips_.bits) & ((uint64_t{1} << flips_.bits) - 1);
        const bool zero = detected && flips_.protection == FaultProtection::kSecdedZero;
        if (zero || bits != 0) changes->push_back({element, static_cast<uint32_t>(bits), zero});
      }
    }
  }

  const BitFlips& flips_;
  double log_keep_;
  std::vector<int> positions_;
  std::vector<int64_t> list_;
};

// Calls body(first, last, changes of these elements) for all chunks, in parallel.
template <typename Body>
void for_each_chunk(const BitFlips& flips, int64_t elements, const ForEach& for_each, const Body& body) {
  const Changes changes(flips);
  const int64_t task_elements = kChunk * kChunksPerTask;
  for_each((elements + task_elements - 1) / task_elements, [&](int64_t task) {
    std::vector<Change> found;
    const int64_t end = std::min(elements, (task + 1) * task_elements);
    for (int64_t first = task * task_elements; first < end; first += kChunk) {
      const int64_t last = std::min(end, first + kChunk);
      changes.find(first, last, &found);
      body(first, last, found);
    }
  });
}

// The lowest `bits` bits as two's complement.
int32_t sign_extended(uint32_t code, int bits) {
  const uint32_t sign = uint32_t{1} << (bits - 1);
  const uint32_t low = code & (2 * sign - 1);
  return static_cast<int32_t>(low ^ sign) - static_cast<int32_t>(sign);
}

}  // namespace

namespace {

// Numbers of fewer than 32 bits are worked out in double, which holds all of them.
class ShortFloats {
 public:
  explicit ShortFloats(const FloatType& type)
      : type_(type),
        bias_((1 << (type.exponent - 1)) - 1),
        ones_((1 << type.exponent) - 1),
        hidden_(uint32_t{1} << type.mantissa),
        largest_(number(static_cast<uint32_t>(type.has_infinity ? ones_ << type.mantissa : hidden_ * (ones_ + 1) - 1) -
                        1)) {}

  // The bits of a finite number: rounded to even, at most the largest number.
  uint32_t pattern(float value) const {
    const double magnitude = std::min(std::fabs(static_cast<double>(value)), largest_);
    const int exponent = magnitude == 0 ? 1 - bias_ : std::max(std::ilogb(magnitude), 1 - bias_);
    // In units of the last place; one more than all ones is the next exponent, as in the bits.
    const auto places = static_cast<uint32_t>(std::rint(std::ldexp(magnitude, type_.mantissa - exponent)));
    const uint32_t sign = std::signbit(value) ? uint32_t{1} << (type_.bits() - 1) : 0;
    return sign | (places < hidden_ ? places : (static_cast<uint32_t>(exponent + bias_) - 1) * hidden_ + places);
  }

  float value(uint32_t pattern) const {
    const uint32_t sign = uint32_t{1} << (type_.bits() - 1);
    const uint32_t bits = pattern & (sign - 1);
    const bool last = static_cast<int>(bits / hidden_) == ones_;
    double magnitude = number(bits);
    if (type_.has_infinity && last) {
      magnitude =
          bits % hidden_ == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
    } else if (last && bits % hidden_ == hidden_ - 1) {
      magnitude = std::numeric_limits<double>::quiet_NaN();
    }
    return static_cast<float>((pattern & sign) != 0 ? -magnitude : magnitude);
  }

 private:
  double number(uint32_t bits) const {
    const auto field = static_cast<int>(bits / hidden_);
    const uint32_t places = bits % hidden_ + (field == 0 ? 0 : hidden_);
    return std::ldexp(static_cast<double>(places), std::max(field, 1) - bias_ - type_.mantissa);
  }

  FloatType type_;
  int bias_;
  int ones_;         // the highest exponent
  uint32_t hidden_;  // the bit of the mantissa that is not stored
  double largest_;
};

}  // namespace

void flip_floats(const BitFlips& flips, const FloatType& type, int64_t elements, const ForEach& for_each,
                 float* values) {
  if (type.bits() == 32) {
    for_each_chunk(flips, elements, for_each, [&](int64_t, int64_t, const std::vector<Change>& changes) {
      for (const Change& change : changes) {
        uint32_t bits = 0;
        std::memcpy(&bits, values + change.element, sizeof(bits));
        bits = change.zero ? 0 : bits ^ change.bits;
        std::memcpy(values + change.element, &bits, sizeof(bits));
      }
    });
    return;
  }
  const ShortFloats floats(type);
  for_each_chunk(flips, elements, for_each, [&](int64_t first, int64_t last, const std::vector<Change>& changes) {
    for (int64_t i = first; i < last; ++i) values[i] = floats.value(floats.pattern(values[i]));
    for (const Change& change : changes) {
      float& value = values[change.element];
      value = change.zero ? 0.0f : floats.value(floats.pattern(value) ^ change.bits);
    }
  });
}

void flip_model_codes(const BitFlips& flips, const ModelCodes& codes, const ForEach& for_each, float* values) {
  const int64_t elements = codes.matrices * codes.rows * codes.columns;
  for_each_chunk(flips, elements, for_each, [&](int64_t, int64_t, const std::vector<Change>& changes) {
    for (const Change& change : changes) {
      const int64_t i = codes.scale_of(change.element);
      const auto stored = static_cast<uint32_t>(codes.code(change.element));
      const auto code = static_cast<float>(sign_extended(stored ^ change.bits, flips.bits));
      values[change.element] = change.zero ? 0.0f : (code - codes.zero_point[i]) * codes.scale[i];
    }
  });
}

namespace {

// Of one matrix.
CodeScales code_scales_of(int bits, bool asymmetric, bool per_column, const float* w, int64_t rows, int64_t columns,
                          const ForEach& for_each) {
  const auto width = static_cast<size_t>(columns);
  std::vector<float> lowest(width, std::numeric_limits<float>::infinity());
  std::vector<float> highest(width, -std::numeric_limits<float>::infinity());
  std::mutex mutex;
  const int64_t rows_per_task = std::max<int64_t>(1, kRangePerTask / std::max<int64_t>(1, columns));
  for_each((rows + rows_per_task - 1) / rows_per_task, [&](int64_t task) {
    const float* first = w + task * rows_per_task * columns;
    std::vector<float> low(first, first + columns);
    std::vector<float> high = low;
    for (int64_t k = task * rows_per_task + 1; k < std::min(rows, (task + 1) * rows_per_task); ++k) {
      kernels().widen_ranges(w + k * columns, columns, low.data(), high.data());
    }
    const std::lock_guard<std::mutex> lock(mutex);
    kernels().widen_ranges(low.data(), columns, lowest.data(), highest.data());
    kernels().widen_ranges(high.data(), columns, lowest.data(), highest.data());
  });
  if (!per_column && columns > 0) {
    std::fill(lowest.begin(), lowest.end(), *std::min_element(lowest.begin(), lowest.end()));
    std::fill(highest.begin(), highest.end(), *std::max_element(highest.begin(), highest.end()));
  }

  CodeScales scales;
  scales.rows = rows;
  scales.low = asymmetric ? 0.0f : -std::ldexp(1.0f, bits - 1);
  scales.high = asymmetric ? std::ldexp(1.0f, bits) - 1 : std::ldexp(1.0f, bits - 1) - 1;
  scales.scale.resize(width);
  scales.zero.resize(width);
  for (size_t n = 0; n < width; ++n) {
    const float range = asymmetric ? highest[n] - lowest[n] : std::max(highest[n], -lowest[n]);
    const float scale = range / scales.high;
    scales.scale[n] = scale > 0 ? scale : 1.0f;
    scales.zero[n] = asymmetric ? std::rint(-lowest[n] / scales.scale[n]) : 0.0f;
  }
  return scales;
}

}  // namespace

CodeScales code_scales(int bits, bool asymmetric, bool per_column, const float* w, int64_t matrices, int64_t rows,
                       int64_t columns, const ForEach& for_each) {
  if (!per_column) return code_scales_of(bits, asymmetric, false, w, matrices * rows, columns, for_each);
  CodeScales all = code_scales_of(bits, asymmetric, true, w, rows, columns, for_each);
  for (int64_t m = 1; m < matrices; ++m) {
    const CodeScales own = code_scales_of(bits, asymmetric, true, w + m * rows * columns, rows, columns, for_each);
    all.scale.insert(all.scale.end(), own.scale.begin(), own.scale.end());
    all.zero.insert(all.zero.end(), own.zero.begin(), own.zero.end());
  }
  return all;
}

void flip_made_codes(const BitFlips& flips, const CodeScales& scales, const float* w, int64_t rows, int64_t columns,
                     const ForEach& for_each, float* out) {
  const bool is_signed = scales.low < 0;
  const auto scale_of = [&](int64_t element) { return element / columns / scales.rows * columns + element % columns; };
  for_each_chunk(flips, rows * columns, for_each, [&](int64_t first, int64_t last, const std::vector<Change>& changes) {
    // Calls body for the parts of the chunk that lie in one row.
    const auto for_parts = [&](const auto& body) {
      for (int64_t begin = first; begin < last;) {
        const int64_t column = begin % columns;
        const int64_t count = std::min(columns - column, last - begin);
        body(begin, scales.scale.data() + scale_of(begin), scales.zero.data() + scale_of(begin), count);
        begin += count;
      }
    };
    for_parts([&](int64_t begin, const float* scale, const float* zero, int64_t count) {
      kernels().make_codes(scales.low, scales.high, w + begin, scale, zero, count, out + begin);
    });
    for (const Change& change : changes) {
      float& code = out[change.element];
      const uint32_t stored = static_cast<uint32_t>(static_cast<int32_t>(code)) ^ change.bits;
      const int32_t flipped = is_signed ? sign_extended(stored, flips.bits) : static_cast<int32_t>(stored);
      const float zero = scales.zero[static_cast<size_t>(scale_of(change.element))];
      code = change.zero ? zero : static_cast<float>(flipped);
    }
    for_parts([&](int64_t begin, const float* scale, const float* zero, int64_t count) {
      kernels().read_codes(out + begin, scale, zero, count, out + begin);
    });
  });
}

}  // namespace emu
