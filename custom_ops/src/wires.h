// What the resistance of wires makes of a crossbar, docs/operators.md "Wires".
#pragma once

#include <cstdint>

namespace emu {

// Replaces the conductances g >= 0 [rows, columns] of an array by those between its drivers and its readouts: the
// current out of column n for a unit voltage on row k alone. A row is driven at column 0, a column read at its last
// row. row_conductance, column_conductance: of one segment of wire, in the unit of g; > 0, infinity for a perfect wire.
// The time grows with (rows + columns)^3: 0.1 s for 256 x 256.
void effective_conductances(float* g, int64_t rows, int64_t columns, double row_conductance, double column_conductance);

}  // namespace emu
