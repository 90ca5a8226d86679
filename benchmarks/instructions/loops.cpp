// Runs one loop of the native library: instructions SET LOOP [NAME=INTEGER or NAME='TEXT ... -- NUMBER ...]. Prints how
// many elements it worked on; callgrind counts the instructions below counted().
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "given_node.h"
#include "kernels.h"

extern "C" {
int emu_program(const emu::GivenNode* node, float* out);
const char* emu_last_error();

__attribute__((noinline)) void counted(const std::function<void()>& body) { body(); }
}

namespace {

constexpr int64_t kRows = 48;  // as many as a block of a product
constexpr int64_t kDepth = 256;
constexpr int64_t kColumns = 768;

// words: attributes, `--` and the numbers of the device.
int program(std::vector<std::string> words, const std::vector<float>& w) {
  std::vector<emu::GivenAttribute> attributes;
  std::vector<float> device;
  size_t i = 0;
  for (; i < words.size() && words[i] != "--"; ++i) {
    const size_t end = words[i].find('=');
    words[i][end] = '\0';
    const char* value = words[i].c_str() + end + 1;
    const bool is_text = *value == '\'';
    attributes.push_back({words[i].c_str(), is_text ? value + 1 : nullptr, is_text ? 0 : std::atoll(value)});
  }
  for (++i; i < words.size(); ++i) device.push_back(std::strtof(words[i].c_str(), nullptr));
  emu::GivenNode node{};
  node.attributes = attributes.data();
  node.attribute_count = static_cast<int64_t>(attributes.size());
  node.device = device.data();
  node.entries = static_cast<int64_t>(device.size());
  node.w = w.data();
  node.matrices = 1;
  node.rows = kDepth;
  node.columns = kColumns;
  node.strength = 1;
  node.seed = 1;
  std::vector<float> out(w.size());
  int failed = 0;
  counted([&] { failed = emu_program(&node, out.data()); });
  if (failed != 0) std::fprintf(stderr, "%s\n", emu_last_error());
  return failed;
}

}  // namespace

int main(int count, char** words) {
  if (count < 3 || !emu::use_kernels(words[1])) return 2;
  const emu::Kernels& kernels = emu::kernels();
  const std::string loop = words[2];
  emu::Counter counter;
  counter.key0 = 1;
  std::vector<float> w(kDepth * kColumns);
  for (int64_t k = 0; k < kDepth; ++k) {
    counter.block = static_cast<uint64_t>(k * kColumns / 4);
    kernels.normals(counter, 0, kColumns, w.data() + k * kColumns);
  }
  std::vector<float> out(kRows * kColumns);
  const std::vector<float> ones(kColumns, 1.0f);
  const auto rows = [&](const std::function<void(int64_t row)>& body) {
    counted([&] {
      for (int64_t row = 0; row < kRows; ++row) body(row);
    });
    return kRows * kColumns;
  };

  int64_t elements = 0;
  if (loop == "program") {
    if (program({words + 3, words + count}, w) != 0) return 2;
    elements = kDepth * kColumns;
  } else if (loop == "normals") {
    elements = rows([&](int64_t row) { kernels.normals(counter, 0, kColumns, out.data() + row * kColumns); });
  } else if (loop == "input range") {
    elements = rows([&](int64_t row) { out[0] = kernels.largest_magnitude(w.data() + row * kColumns, kColumns); });
  } else if (loop == "DAC") {
    emu::InputRow input;
    input.steps = 254;
    input.bound = 1;
    elements = rows([&](int64_t row) {
      kernels.quantize_input(input, w.data() + row * kColumns, kColumns, out.data() + row * kColumns);
    });
  } else if (loop == "ADC" || loop == "noise and ADC") {
    emu::ReadRow read;
    const bool noisy = loop == "noise and ADC";
    emu::NoiseRow noise;
    noise.std = 0.04f;
    std::vector<float> peaks(emu::kPeakLanes);
    read.range = emu::ReadRow::Range::kGiven;
    read.steps = 254;
    read.low = -12;
    read.high = 12;
    read.scales = ones.data();
    read.accumulate = true;
    elements = rows([&](int64_t row) {
      noise.position = static_cast<uint32_t>(row);
      if (noisy) {
        kernels.disturb_rows(counter, 0, &noise, 1, kColumns, w.data() + row * kColumns, peaks.data());
        read.peak = peaks[0];
      }
      kernels.read_row(read, w.data() + row * kColumns, kColumns, out.data() + row * kColumns);
    });
  } else if (loop == "pack" || loop == "product") {
    std::vector<float> packed(static_cast<size_t>(kernels.float_packing->size(kDepth, kColumns)));
    const auto pack = [&] { kernels.float_packing->pack(w.data(), kColumns, kDepth, kColumns, packed.data()); };
    elements = kDepth * kColumns;
    if (loop == "pack") {
      counted(pack);
    } else {
      pack();
      counted([&] {
        kernels.multiply_packed(w.data(), kDepth, kRows, packed.data(), kDepth, kColumns, out.data(), kColumns,
                                nullptr);
      });
      elements *= kRows;
    }
  } else {
    return 2;
  }
  std::printf("%lld\n", static_cast<long long>(elements));
  return 0;
}
