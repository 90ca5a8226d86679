#include "wires.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace emu {

namespace {

// Of a segment of perfect wire: far beyond what a float resolves, and yet every ratio is a double.
constexpr double kPerfect = 1e15;

// A network of conductances, each between two nodes: row(i)[j] for i < j.
class Network {
 public:
  explicit Network(int64_t nodes) : nodes_(nodes), conductances_(static_cast<size_t>(nodes * nodes)) {}

  int64_t nodes() const { return nodes_; }
  double* row(int64_t i) { return conductances_.data() + i * nodes_; }
  const double* row(int64_t i) const { return conductances_.data() + i * nodes_; }
  void add(int64_t i, int64_t j, double conductance) { row(std::min(i, j))[std::max(i, j)] += conductance; }

  // The equivalent network of the other nodes, given that nothing else is connected to the first `count` (which are
  // used up). A node with conductances c_i to the others gives way to c_i c_j / (sum of c) between each two of them. As
  // only positive numbers are added, every conductance stays accurate in itself, however different wires and cells are.
  Network without_first(int64_t count) {
    std::vector<double> sums(static_cast<size_t>(count));
    for (int64_t p = 0; p < count; ++p) {
      const double* c = row(p);
      const double sum = std::accumulate(c + p + 1, c + nodes_, 0.0);
      sums[static_cast<size_t>(p)] = sum;
      for (int64_t i = p + 1; i < count; ++i) add_scaled(c[i] / sum, c, i, row(i));
    }
    Network rest(nodes_ - count);
    for (int64_t i = count; i < nodes_; ++i) std::copy(row(i) + i, row(i) + nodes_, rest.row(i - count) + i - count);
    int64_t p = 0;
    for (; p + 4 <= count; p += 4) {  // four rows stay in the nearest cache
      const double* c0 = row(p) + count;
      const double* c1 = row(p + 1) + count;
      const double* c2 = row(p + 2) + count;
      const double* c3 = row(p + 3) + count;
      const double* sum = sums.data() + p;
      for (int64_t i = 0; i < rest.nodes_; ++i) {
        const double share0 = c0[i] / sum[0];
        const double share1 = c1[i] / sum[1];
        const double share2 = c2[i] / sum[2];
        const double share3 = c3[i] / sum[3];
        double* out = rest.row(i);
        for (int64_t j = i + 1; j < rest.nodes_; ++j) {
          out[j] += share0 * c0[j] + share1 * c1[j] + share2 * c2[j] + share3 * c3[j];
        }
      }
    }
    for (; p < count; ++p) {
      const double* c = row(p) + count;
      for (int64_t i = 0; i < rest.nodes_; ++i) {
        rest.add_scaled(c[i] / sums[static_cast<size_t>(p)], c, i, rest.row(i));
      }
    }
    return rest;
  }

 private:
  // out[j] += factor * c[j] for j > i
  void add_scaled(double factor, const double* c, int64_t i, double* out) const {
    for (int64_t j = i + 1; j < nodes_; ++j) out[j] += factor * c[j];
  }

  int64_t nodes_;
  std::vector<double> conductances_;
};

// How many wires leave a rectangle of the array on each side, or the first node of each side.
struct Sides {
  int64_t left;
  int64_t bottom;
  int64_t right;
  int64_t top;
};

// A rectangle of the array as seen from the ends of its wires, which are the nodes, side by side. Every cell owns the
// segments to its left and below. Nothing leaves at the top of the array and to its right.
struct Part {
  Sides wires;
  Network network;
};

void put(const Part& part, const Sides& first, Network* whole) {
  std::vector<int64_t> node;
  const auto append = [&node](int64_t begin, int64_t count) {
    for (int64_t i = 0; i < count; ++i) node.push_back(begin + i);
  };
  append(first.left, part.wires.left);
  append(first.bottom, part.wires.bottom);
  append(first.right, part.wires.right);
  append(first.top, part.wires.top);
  for (size_t i = 0; i < node.size(); ++i) {
    const double* conductances = part.network.row(static_cast<int64_t>(i));
    for (size_t j = i + 1; j < node.size(); ++j) whole->add(node[i], node[j], conductances[j]);
  }
}

// The first nodes of the sides, after `shared` nodes.
Sides first_nodes(int64_t shared, const Sides& wires) {
  const int64_t bottom = shared + wires.left;
  const int64_t right = bottom + wires.bottom;
  return {shared, bottom, right, right + wires.right};
}

Part side_by_side(const Part& a, const Part& b) {
  const int64_t shared = a.wires.right;
  const Sides wires = {a.wires.left, a.wires.bottom + b.wires.bottom, b.wires.right, a.wires.top + b.wires.top};
  const Sides first = first_nodes(shared, wires);
  Network both(first.top + wires.top);
  put(a, {first.left, first.bottom, 0, first.top}, &both);
  put(b, {0, first.bottom + a.wires.bottom, first.right, first.top + a.wires.top}, &both);
  return {wires, both.without_first(shared)};
}

Part above_each_other(const Part& a, const Part& b) {
  const int64_t shared = a.wires.bottom;
  const Sides wires = {a.wires.left + b.wires.left, b.wires.bottom, a.wires.right + b.wires.right, a.wires.top};
  const Sides first = first_nodes(shared, wires);
  Network both(first.top + wires.top);
  put(a, {first.left, 0, first.right, first.top}, &both);
  put(b, {first.left + a.wires.left, first.bottom, first.right + a.wires.right, 0}, &both);
  return {wires, both.without_first(shared)};
}

struct Array {
  const float* g;
  int64_t columns;
  double row_conductance;
  double column_conductance;

  Part cell(int64_t k, int64_t n) const {
    const int64_t right = n + 1 < columns ? 1 : 0;
    const int64_t top = k > 0 ? 1 : 0;
    // Ends of wires that lead nowhere are of no more use.
    const int64_t hidden = 2 - right - top;
    const int64_t on_row = right > 0 ? hidden + 2 : 0;
    const int64_t on_column = top > 0 ? 3 : hidden - 1;
    Network network(4);
    network.add(hidden, on_row, row_conductance);
    network.add(on_row, on_column, static_cast<double>(g[k * columns + n]));
    network.add(on_column, hidden + 1, column_conductance);
    return {{1, 1, right, top}, network.without_first(hidden)};
  }

  // Halves until single cells: dissecting the array costs much less than eliminating row after row.
  Part part(int64_t first_row, int64_t rows, int64_t first_column, int64_t part_columns) const {
    if (rows == 1 && part_columns == 1) return cell(first_row, first_column);
    if (rows > part_columns) {
      const int64_t upper = rows / 2;
      return above_each_other(part(first_row, upper, first_column, part_columns),
                              part(first_row + upper, rows - upper, first_column, part_columns));
    }
    const int64_t left = part_columns / 2;
    return side_by_side(part(first_row, rows, first_column, left),
                        part(first_row, rows, first_column + left, part_columns - left));
  }
};

}  // namespace

void effective_conductances(float* g, int64_t rows, int64_t columns, double row_conductance,
                            double column_conductance) {
  if (rows == 0 || columns == 0 || (std::isinf(row_conductance) && std::isinf(column_conductance))) return;
  const Array array = {g, columns, std::min(row_conductance, kPerfect), std::min(column_conductance, kPerfect)};
  const Part whole = array.part(0, rows, 0, columns);
  for (int64_t k = 0; k < rows; ++k) {
    for (int64_t n = 0; n < columns; ++n) g[k * columns + n] = static_cast<float>(whole.network.row(k)[rows + n]);
  }
}

}  // namespace emu
