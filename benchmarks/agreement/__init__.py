"""How far emu is from other crossbar simulators where both compute the same thing."""
