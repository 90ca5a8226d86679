#include "structure.h"

#include <cmath>
#include <map>
#include <sstream>

#include "ort.h"

namespace emu {

namespace {

constexpr int64_t kFormat = 1;

std::string number(double value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

template <typename Value>
Value choice(const std::string& node, const char* attribute, const std::string& text,
             const std::map<std::string, Value>& values) {
  const auto found = values.find(text);
  if (found != values.end()) return found->second;
  std::string known;
  for (const auto& item : values) known += (known.empty() ? "" : ", ") + item.first;
  throw Error("node '" + node + "', attribute '" + attribute + "': '" + text + "' is unknown; expected one of " +
              known);
}

const std::map<std::string, Disturbance>& disturbances() {
  static const std::map<std::string, Disturbance> values = {
      {"none", Disturbance::kNone},
      {"lognormal_w", Disturbance::kLognormal},
      {"lognormal_w_meancorr", Disturbance::kLognormalMeanCorrected},
      {"lognormal_g", Disturbance::kLognormalConductance},
      {"gauss_prop", Disturbance::kGaussProportional},
      {"gauss_range", Disturbance::kGaussRange},
  };
  return values;
}

// One entry of the device tensor: where it goes, and which values it may have.
struct Entry {
  const char* name;
  float Device::* field;
  double low;
  double high;
  bool low_is_open;
};

const std::vector<Entry>& known_entries() {
  constexpr double kHuge = 3.0e38;
  static const std::vector<Entry> entries = {
      {"program.sigma", &Device::sigma, 0, 10, false},
      {"program.sigma_cycle", &Device::sigma_cycle, 0, 10, false},
      {"mapping.g_min_us", &Device::g_min_us, 0, kHuge, false},
      {"mapping.g_max_us", &Device::g_max_us, 0, kHuge, true},
      {"write.sigma", &Device::sigma, 0, 10, false},
      {"dac.bits", &Device::dac_bits, 0, 16, false},
      {"dac.steps", &Device::dac_steps_given, 0, 65536, false},
      {"dac.bound", &Device::dac_bound, 0, kHuge, true},
      {"dac.max", &Device::dac_max, 0, kHuge, true},
      {"adc.bits", &Device::adc_bits, 0, 16, false},
      {"adc.steps", &Device::adc_steps_given, 0, 65536, false},
      {"adc.bound", &Device::adc_bound, 0, kHuge, true},
      {"adc.max_bound_factor", &Device::max_bound_factor, 1, 1048576, false},
      {"adc.max_bound_resolution", &Device::max_bound_resolution, 0, kHuge, true},
      {"read.weight_noise", &Device::weight_noise, 0, kHuge, false},
      {"read.output_noise", &Device::output_noise, 0, kHuge, false},
  };
  return entries;
}

const Entry* find_entry(const std::string& name) {
  for (const Entry& entry : known_entries()) {
    if (name == entry.name) return &entry;
  }
  return nullptr;
}

bool has(const std::vector<std::string>& names, const char* name) {
  for (const auto& candidate : names) {
    if (candidate == name) return true;
  }
  return false;
}

double steps(float bits, float steps_given) {
  if (steps_given > 0) return steps_given;
  return bits > 0 ? std::exp2(static_cast<double>(bits)) - 2.0 : 0.0;
}

void require_whole(const std::string& node, const char* name, float value) {
  if (value == 0 || (value >= 2 && std::floor(value) == value)) return;
  throw Error("node '" + node + "', control input 'device': entry '" + name + "' is " + number(value) +
              "; expected 0 or a whole number from 2");
}

}  // namespace

double Device::dac_steps() const { return steps(dac_bits, dac_steps_given); }
double Device::adc_steps() const { return steps(adc_bits, adc_steps_given); }

std::vector<Span> Structure::split(int64_t size, int64_t largest) const {
  if (largest <= 0 || largest >= size) return {{0, size}};
  const int64_t count = (size + largest - 1) / largest;
  std::vector<Span> spans;
  int64_t begin = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t length = balanced ? size / count + (i < size % count ? 1 : 0) : std::min(largest, size - begin);
    spans.push_back({begin, begin + length});
    begin += length;
  }
  return spans;
}

std::vector<Span> Structure::column_groups(int64_t columns) const {
  const bool decided_per_tile = adc == Range::kAbsMax || iterative;
  return decided_per_tile ? column_tiles(columns) : std::vector<Span>{{0, columns}};
}

Device Structure::device(const float* values, int64_t count) const {
  const std::string where = "node '" + node + "', control input 'device': ";
  if (count != static_cast<int64_t>(entries.size())) {
    throw Error(where + "it has " + std::to_string(count) + " entries; expected " + std::to_string(entries.size()));
  }
  Device device;
  for (size_t i = 0; i < entries.size(); ++i) {
    const Entry& entry = *find_entry(entries[i]);
    const double value = values[i];
    const bool in_range = (entry.low_is_open ? value > entry.low : value >= entry.low) && value <= entry.high;
    if (!in_range) {  // also when it is not a number
      const std::string upper = entry.high < 1e30 ? " and at most " + number(entry.high) : "";
      throw Error(where + "entry '" + entries[i] + "' is " + number(value) + "; expected " +
                  (entry.low_is_open ? "more than " : "at least ") + number(entry.low) + upper);
    }
    // A stored site has no use for write.sigma, a dynamic one none for program.sigma: they share a field.
    const bool other_kind = entries[i].rfind(dynamic ? "program." : "write.", 0) == 0;
    if (!other_kind) device.*entry.field = values[i];
  }
  if (has(entries, "mapping.g_min_us") && !(device.g_min_us < device.g_max_us)) {
    throw Error(where + "entry 'mapping.g_min_us' is " + number(device.g_min_us) +
                "; expected less than 'mapping.g_max_us', which is " + number(device.g_max_us));
  }
  require_whole(node, "dac.bits", device.dac_bits);
  require_whole(node, "dac.steps", device.dac_steps_given);
  require_whole(node, "adc.bits", device.adc_bits);
  require_whole(node, "adc.steps", device.adc_steps_given);
  return device;
}

Structure parse_structure(const std::string& node, Operator kind,
                          const std::function<int64_t(const char*)>& int_attribute,
                          const std::function<std::string(const char*)>& string_attribute) {
  const bool dynamic = kind == Operator::kDynamic;
  const auto count = [&](const char* attribute, int64_t low) {
    const int64_t value = int_attribute(attribute);
    if (value < low) {
      throw Error("node '" + node + "', attribute '" + attribute + "' is " + std::to_string(value) +
                  "; expected at least " + std::to_string(low));
    }
    return value;
  };
  if (count("format", 0) != kFormat) {
    throw Error("node '" + node + "' is written in format " + std::to_string(int_attribute("format")) +
                ", this library knows format " + std::to_string(kFormat) + "; update emu or rewrite the model");
  }
  const std::map<std::string, Range> ranges = {
      {"none", Range::kNone}, {"fixed", Range::kFixed}, {"absmax", Range::kAbsMax}};
  const auto chosen = [&](const char* attribute, const auto& values) {
    return choice(node, attribute, string_attribute(attribute), values);
  };

  Structure structure;
  structure.node = node;
  structure.dynamic = dynamic;
  structure.site = count("site", 0);
  structure.sites = count("sites", 1);
  if (structure.site >= structure.sites) {
    throw Error("node '" + node + "', attribute 'site' is " + std::to_string(structure.site) +
                "; expected less than attribute 'sites', which is " + std::to_string(structure.sites));
  }
  structure.array = count("array", 0);
  structure.sample_axis = count("sample_axis", -1);
  if (structure.sample_axis > 1) {
    throw Error("node '" + node + "', attribute 'sample_axis' is " + std::to_string(structure.sample_axis) +
                "; expected -1, 0 or 1");
  }
  structure.heads = count("heads", 0);
  structure.head_groups = count("head_groups", 1);
  structure.head_share = count("head_share", 1);
  structure.tile_rows = count("tile_rows", 0);
  structure.tile_columns = count("tile_columns", 0);
  structure.head_axis = chosen("head_axis", std::map<std::string, HeadAxis>{{"none", HeadAxis::kNone},
                                                                            {"output", HeadAxis::kOutput},
                                                                            {"input", HeadAxis::kInput},
                                                                            {"matrix", HeadAxis::kMatrix}});
  if (structure.head_axis != HeadAxis::kNone && structure.heads < 1) {
    throw Error("node '" + node + "', attribute 'heads' is 0; expected at least 1 because 'head_axis' is '" +
                string_attribute("head_axis") + "'");
  }
  if (structure.head_groups != 1 && structure.head_axis != HeadAxis::kOutput) {
    throw Error("node '" + node + "', attribute 'head_groups' is " + std::to_string(structure.head_groups) +
                "; expected 1 because 'head_axis' is not 'output'");
  }
  const bool axis_fits =
      structure.head_axis == HeadAxis::kNone || dynamic == (structure.head_axis == HeadAxis::kMatrix);
  if (!axis_fits) {
    throw Error("node '" + node + "', attribute 'head_axis': '" + string_attribute("head_axis") +
                "' does not fit this operator; expected " + (dynamic ? "none or matrix" : "none, output or input"));
  }
  structure.balanced = chosen("tile_split", std::map<std::string, bool>{{"fill", false}, {"balanced", true}});
  structure.scaling = chosen("scaling", std::map<std::string, Scaling>{{"tensor", Scaling::kTensor},
                                                                       {"column", Scaling::kColumn},
                                                                       {"tile", Scaling::kTile},
                                                                       {"tile_column", Scaling::kTileColumn}});
  structure.disturbance = chosen(dynamic ? "write" : "program", disturbances());
  structure.dac = chosen("dac", ranges);
  structure.adc = chosen("adc", ranges);
  structure.iterative = chosen("bound_management", std::map<std::string, bool>{{"none", false}, {"iterative", true}});
  if (structure.iterative && structure.adc != Range::kFixed) {
    throw Error("node '" + node +
                "', attribute 'bound_management' is 'iterative'; this needs attribute 'adc' to be 'fixed'");
  }
  structure.weight_noise =
      chosen("read_noise", std::map<std::string, WeightNoise>{{"none", WeightNoise::kNone},
                                                              {"additive_constant", WeightNoise::kAdditiveConstant},
                                                              {"pcm_read", WeightNoise::kPcmRead}});

  if (kind == Operator::kQuantized) {
    structure.code_bits = count("code_bits", 1);
    structure.block_rows = count("block_rows", 0);
    if (structure.code_bits != 4 && structure.code_bits != 8) {
      throw Error("node '" + node + "', attribute 'code_bits' is " + std::to_string(structure.code_bits) +
                  "; expected 4 or 8");
    }
  }

  std::stringstream names(string_attribute("entries"));
  for (std::string name; std::getline(names, name, ',');) {
    if (find_entry(name) == nullptr) {
      throw Error("node '" + node + "', attribute 'entries': '" + name +
                  "' is unknown to this library; update emu or rewrite the model");
    }
    if (has(structure.entries, name.c_str())) {
      throw Error("node '" + node + "', attribute 'entries': '" + name + "' stands twice");
    }
    structure.entries.push_back(name);
  }
  structure.output_noise = has(structure.entries, "read.output_noise");

  std::vector<const char*> needed;
  if (structure.disturbance != Disturbance::kNone) {
    needed.push_back(dynamic ? "write.sigma" : "program.sigma");
    if (!dynamic) needed.push_back("program.sigma_cycle");
    if (structure.disturbance == Disturbance::kLognormalConductance) {
      needed.push_back("mapping.g_min_us");
      needed.push_back("mapping.g_max_us");
    }
  }
  if (structure.dac != Range::kNone) needed.insert(needed.end(), {"dac.bits", "dac.steps", "dac.bound"});
  if (structure.dac == Range::kFixed) needed.push_back("dac.max");
  if (structure.adc != Range::kNone) needed.insert(needed.end(), {"adc.bits", "adc.steps"});
  if (structure.adc == Range::kFixed) needed.push_back("adc.bound");
  if (structure.iterative) needed.insert(needed.end(), {"adc.max_bound_factor", "adc.max_bound_resolution"});
  if (structure.weight_noise != WeightNoise::kNone) needed.push_back("read.weight_noise");
  for (const char* name : needed) {
    if (!has(structure.entries, name)) {
      throw Error("node '" + node + "', attribute 'entries' lacks '" + name + "', which its other attributes need");
    }
  }
  return structure;
}

}  // namespace emu
