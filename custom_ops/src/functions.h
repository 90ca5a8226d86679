// Program functions: device models of the user's own, called by name.
#pragma once

#include <cstdint>

#include "structure.h"

namespace emu {

// Writes [rows, columns] values into out and returns 0, or another number if it failed. The parameters have names.
using ProgramFunction = int (*)(const float* targets, const float* normals, const char* const* names,
                                const float* parameters, int64_t parameter_count, int64_t rows, int64_t columns,
                                float* out);

// Makes a function known under a name; a second one of that name replaces it, null removes it.
void register_program_function(const char* name, ProgramFunction function);
// What went wrong in the call that is about to return a failure, on this thread.
void set_program_function_error(const char* sentence);

// Calls the function that the structure names. Throws Error if there is none or it fails.
void call_program_function(const Structure& structure, const Device& device, const float* targets, const float* normals,
                           int64_t rows, int64_t columns, float* out);

}  // namespace emu
