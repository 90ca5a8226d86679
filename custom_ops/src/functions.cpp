#include "functions.h"

#include <map>
#include <mutex>

#include "ort.h"

namespace emu {

namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::string, ProgramFunction> functions;
};

Registry& registry() {
  static Registry instance;
  return instance;
}

thread_local std::string g_error;

}  // namespace

void register_program_function(const char* name, ProgramFunction function) {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  if (function == nullptr) {
    registry().functions.erase(name);
  } else {
    registry().functions[name] = function;
  }
}

void set_program_function_error(const char* sentence) { g_error = sentence; }

void call_program_function(const Structure& structure, const Device& device, const float* targets, const float* normals,
                           int64_t rows, int64_t columns, float* out) {
  const std::string& name = structure.program_function;
  ProgramFunction function = nullptr;
  {
    const std::lock_guard<std::mutex> lock(registry().mutex);
    const auto found = registry().functions.find(name);
    if (found != registry().functions.end()) function = found->second;
  }
  if (function == nullptr) {
    throw Error("node '" + structure.node + "' is programmed by the function '" + name +
                "', which this process does not know; register it with emu.register_device_function");
  }
  std::vector<const char*> names;
  for (const std::string& each : device.parameter_names) names.push_back(each.c_str());
  g_error.clear();
  if (function(targets, normals, names.data(), device.parameters.data(), static_cast<int64_t>(names.size()), rows,
               columns, out) != 0) {
    throw Error("node '" + structure.node + "': the function '" + name + "' failed" +
                (g_error.empty() ? "" : ": " + g_error));
  }
}

}  // namespace emu
