// Buffers of floats that somebody fills at once.
#pragma once

#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace emu {

// Leaves new elements as they are where a vector would set them to zero: a pass over memory less.
template <typename T>
struct Unset : std::allocator<T> {
  template <typename Other>
  struct rebind {
    using other = Unset<Other>;
  };
  template <typename Element>
  void construct(Element* place) {
    ::new (static_cast<void*>(place)) Element;
  }
  template <typename Element, typename... Values>
  void construct(Element* place, Values&&... values) {
    ::new (static_cast<void*>(place)) Element(std::forward<Values>(values)...);
  }
};

// Floats(n) are not set; Floats(n, 0.0f) are zero.
using Floats = std::vector<float, Unset<float>>;

}  // namespace emu
