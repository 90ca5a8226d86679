#include "structure.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <sstream>

#include "ort.h"

namespace emu {

// One entry of the device tensor: where it goes, and which values it may have.
struct Entry {
  const char* name;
  float Device::* field;
  double low;
  double high;
  enum Kind {
    kFrom,
    kAbove,
    kZeroOrWhole
  } kind = kFrom;  // low itself is allowed; is not; 0, or whole numbers from low
};

namespace {

constexpr int64_t kFormat = 2;
// Of attributes that count or number something, so that no product of two overflows, and none is 0 in 32 bits.
constexpr int64_t kMost = INT32_MAX;
constexpr int64_t kMostTableValues = 65536;  // means of a table
constexpr double kHuge = 3.0e38;

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

const std::map<std::string, Disturbance>& write_models() {
  static const std::map<std::string, Disturbance> values = {
      {"none", Disturbance::kNone},
      {"lognormal_w", Disturbance::kLognormal},
      {"lognormal_w_meancorr", Disturbance::kLognormalMeanCorrected},
      {"gauss_prop", Disturbance::kGaussProportional},
      {"gauss_range", Disturbance::kGaussRange},
      {"lognormal_g", Disturbance::kLognormalConductance},
      {"clipformer", Disturbance::kClipFormer},
  };
  return values;
}

// wan2022 is a polynomial and sonos a saturating law whose coefficients depend on the time.
enum class TimedModel { kNone, kWan2022, kSonos };

struct ProgramModel {
  Disturbance disturbance;
  TimedModel timed;
};

const std::map<std::string, ProgramModel>& program_models() {
  static const std::map<std::string, ProgramModel> values = {
      {"none", {Disturbance::kNone, TimedModel::kNone}},
      {"lognormal_w", {Disturbance::kLognormal, TimedModel::kNone}},
      {"lognormal_w_meancorr", {Disturbance::kLognormalMeanCorrected, TimedModel::kNone}},
      {"gauss_prop", {Disturbance::kGaussProportional, TimedModel::kNone}},
      {"gauss_range", {Disturbance::kGaussRange, TimedModel::kNone}},
      {"lognormal_g", {Disturbance::kLognormalConductance, TimedModel::kNone}},
      {"normal_independent", {Disturbance::kNormalIndependent, TimedModel::kNone}},
      {"normal_proportional", {Disturbance::kNormalProportional, TimedModel::kNone}},
      {"normal_inverse", {Disturbance::kNormalInverse, TimedModel::kNone}},
      {"uniform_independent", {Disturbance::kUniformIndependent, TimedModel::kNone}},
      {"uniform_proportional", {Disturbance::kUniformProportional, TimedModel::kNone}},
      {"uniform_inverse", {Disturbance::kUniformInverse, TimedModel::kNone}},
      {"polynomial", {Disturbance::kPolynomial, TimedModel::kNone}},
      {"wan2022", {Disturbance::kPolynomial, TimedModel::kWan2022}},
      {"sonos", {Disturbance::kSaturating, TimedModel::kSonos}},
      {"level_shared", {Disturbance::kLevelShared, TimedModel::kNone}},
      {"resistance_range", {Disturbance::kResistanceRange, TimedModel::kNone}},
      {"table", {Disturbance::kTable, TimedModel::kNone}},
      {"function", {Disturbance::kFunction, TimedModel::kNone}},
  };
  return values;
}

struct WanFit {
  float time_s;
  float c[5];
};
constexpr WanFit kWan[] = {{1, {0.348f, 16.030f, -43.853f, 45.393f, -16.815f}},
                           {86400, {0.701f, 22.086f, -50.773f, 47.095f, -16.458f}},
                           {172800, {0.782f, 20.274f, -43.507f, 37.062f, -11.934f}}};
constexpr float kWanReferenceUs = 40;

struct SonosFit {
  float time_s;
  float a;
  float b;
};
constexpr SonosFit kSonos[] = {{0, 19.88665f, 176.3115f},       {86400, 25.59102f, 186.85544f},
                               {172800, 28.72753f, 193.56834f}, {259200, 31.04318f, 198.90332f},
                               {345600, 33.76214f, 204.77023f}, {432000, 34.57909f, 207.34309f}};

const std::vector<Entry>& known_entries() {
  using E = Entry;
  static const std::vector<Entry> entries = {
      {"program.sigma", &Device::sigma, 0, 10},
      {"program.sigma_cycle", &Device::sigma_cycle, 0, 10},
      {"program.sigma_off", &Device::sigma_off, 0, 10},
      {"program.scale", &Device::scale, 0, kHuge},
      {"program.reference_us", &Device::reference_us, 0, kHuge, E::kAbove},
      {"program.current_max_na", &Device::current_max_na, 0, kHuge, E::kAbove},
      {"program.time_s", &Device::program_time_s, 0, kHuge},
      {"program.modifier", &Device::modifier, 0, kHuge},
      {"mapping.g_min_us", &Device::g_min_us, 0, kHuge},
      {"mapping.g_max_us", &Device::g_max_us, 0, kHuge, E::kAbove},
      {"mapping.cell_bits", &Device::cell_bits, 1, 12, E::kZeroOrWhole},
      {"mapping.percentile", &Device::percentile, 0, 1, E::kAbove},
      {"drift.time_s", &Device::drift_time_s, 0, kHuge},
      {"drift.scale", &Device::drift_scale, 0, kHuge},
      {"drift.read_scale", &Device::drift_read_scale, 0, kHuge},
      {"drift.nu", &Device::nu, -kHuge, kHuge},
      {"drift.nu_sigma", &Device::nu_sigma, 0, kHuge},
      {"drift.t0_s", &Device::t0_s, 0, kHuge, E::kAbove},
      {"faults.ber", &Device::ber, 0, 1},
      {"faults.stuck_low", &Device::stuck_low, 0, 1},
      {"faults.stuck_high", &Device::stuck_high, 0, 1},
      {"write.sigma", &Device::sigma, 0, 10},
      {"write.gamma", &Device::gamma, 0, kHuge},
      {"write.alpha", &Device::alpha, 0, kHuge},
      {"write.beta", &Device::beta, 0, 1, E::kAbove},
      {"write.bits", &Device::write_bits, 2, 16, E::kZeroOrWhole},
      {"dac.bits", &Device::dac_bits, 2, 16, E::kZeroOrWhole},
      {"dac.steps", &Device::dac_steps_given, 2, 65536, E::kZeroOrWhole},
      {"dac.bound", &Device::dac_bound, 0, kHuge, E::kAbove},
      {"dac.max", &Device::dac_max, 0, kHuge, E::kAbove},
      {"dac.limit", &Device::dac_limit, 0, kHuge, E::kAbove},
      {"adc.bits", &Device::adc_bits, 2, 16, E::kZeroOrWhole},
      {"adc.steps", &Device::adc_steps_given, 2, 65536, E::kZeroOrWhole},
      {"adc.bound", &Device::adc_bound, 0, kHuge, E::kAbove},
      {"adc.gain_sigma", &Device::gain_sigma, 0, kHuge},
      {"adc.offset_sigma", &Device::offset_sigma, 0, kHuge},
      {"adc.max_bound_factor", &Device::max_bound_factor, 1, 1048576},
      {"adc.max_bound_resolution", &Device::max_bound_resolution, 0, kHuge, E::kAbove},
      {"read.weight_noise", &Device::weight_noise, 0, kHuge},
      {"read.output_noise", &Device::output_noise, 0, kHuge},
      {"read.input_noise", &Device::input_noise, 0, kHuge},
      {"read.ir_drop", &Device::ir_drop, 0, kHuge},
      {"read.ir_drop_ratio", &Device::ir_drop_ratio, 0, kHuge, E::kAbove},
      {"read.row_ohm", &Device::row_ohm, 0, kHuge},
      {"read.column_ohm", &Device::column_ohm, 0, kHuge},
  };
  return entries;
}

bool starts_with(const std::string& text, const char* start) { return text.rfind(start, 0) == 0; }

const Entry* find_entry(const std::string& name) {
  static const std::unordered_map<std::string, const Entry*> by_name = [] {
    std::unordered_map<std::string, const Entry*> entries;
    for (const Entry& entry : known_entries()) entries[entry.name] = &entry;
    return entries;
  }();
  const auto found = by_name.find(name);
  return found == by_name.end() ? nullptr : found->second;
}

// Entries whose names carry indices or a name of their own.
struct Family {
  const char* start;
  Place::Family family;
  int indices;
};
constexpr Family kFamilies[] = {
    {"program.c", Place::kCoefficient, 1},           {"program.target_us.", Place::kTarget, 1},
    {"program.mean_us.", Place::kMean, 2},           {"program.std_us.", Place::kStd, 2},
    {"program.table_time_s.", Place::kTableTime, 1}, {"program.parameter.", Place::kParameter, 0}};

// The whole number at the end of, or up to a point in, text from `begin` on; -1 where there is none of up to 6 digits.
int64_t index_at(const std::string& text, size_t begin, size_t end) {
  if (end <= begin || end - begin > 6 || (text[begin] == '0' && end - begin > 1)) return -1;
  int64_t index = 0;
  for (size_t i = begin; i < end; ++i) {
    if (text[i] < '0' || text[i] > '9') return -1;
    index = 10 * index + (text[i] - '0');
  }
  return index;
}

// False where no entry has such a name.
bool find_place(const std::string& name, Place& place) {
  place.known = find_entry(name);
  place.stored = starts_with(name, "program.") || starts_with(name, "mapping.") || starts_with(name, "drift.") ||
                 starts_with(name, "faults.") || name == "read.row_ohm" || name == "read.column_ohm";
  place.of_readings = starts_with(name, "read.") || starts_with(name, "adc.");
  if (place.known != nullptr) return true;
  for (const Family& family : kFamilies) {
    if (!starts_with(name, family.start)) continue;
    place.family = family.family;
    const size_t begin = std::string(family.start).size();
    const size_t point = family.indices > 1 ? name.find('.', begin) : std::string::npos;
    if (family.indices > 0) place.first = index_at(name, begin, std::min(point, name.size()));
    if (family.indices > 1 && point != std::string::npos) place.second = index_at(name, point + 1, name.size());
    return true;
  }
  return false;
}

// So that whole codes fill a word of 64 bits.
bool is_code_width(int64_t bits) { return bits == 2 || bits == 4 || bits == 8 || bits == 16; }

bool inside(int64_t index, int64_t count) { return index >= 0 && index < count; }

double steps(float bits, float steps_given, double less) {
  if (steps_given > 0) return steps_given;
  return bits > 0 ? std::exp2(static_cast<double>(bits)) - less : 0.0;
}

}  // namespace

int Structure::stored_bits() const {
  if (kind == Operator::kQuantized) return static_cast<int>(code_bits);
  return fault_storage == FaultStorage::kFloat32 ? 32 : static_cast<int>(fault_bits);
}

bool Structure::has(const char* entry) const { return index_of_.count(entry) > 0; }

int64_t Structure::slices() const {
  if (slice_bits == 0) return 1;
  const int64_t bits = encoding == Encoding::kOffset ? weight_bits : weight_bits - 1;
  return (bits + slice_bits - 1) / slice_bits;
}

int64_t Structure::input_slices(const Device& device) const {
  if (dac_slice_bits == 0) return 1;
  const auto bits = static_cast<int64_t>(device.dac_bits) - 1;
  return (bits + dac_slice_bits - 1) / dac_slice_bits;
}

double Structure::dac_steps(const Device& device) const {
  if (dac == Range::kNone) return 0.0;
  return steps(device.dac_bits, device.dac_steps_given, dac_offset_binary ? 1.0 : 2.0);
}

double Structure::adc_steps(const Device& device) const {
  if (adc == Range::kNone) return 0.0;
  const double less = adc_code == AdcCode::kSignMagnitude ? 2.0 : adc_code == AdcCode::kOffsetBinary ? 1.0 : 0.0;
  return steps(device.adc_bits, device.adc_steps_given, less);
}

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

namespace {

// Sets the coefficients of models that come with their own, by time.
void set_timed_coefficients(TimedModel model, const std::string& node, Device& device) {
  const auto unknown_time = [&](const char* name, const char* times) {
    throw Error("node '" + node + "', control input 'device': entry 'program.time_s' is " +
                number(device.program_time_s) + "; '" + name + "' is measured at " + times + " seconds only");
  };
  if (model == TimedModel::kWan2022) {
    for (const WanFit& fit : kWan) {
      if (fit.time_s != device.program_time_s) continue;
      std::copy(fit.c, fit.c + 5, device.c);
      device.reference_us = kWanReferenceUs;
      return;
    }
    unknown_time("wan2022", "1, 86400 and 172800");
  } else if (model == TimedModel::kSonos) {
    for (const SonosFit& fit : kSonos) {
      if (fit.time_s != device.program_time_s) continue;
      device.c[0] = fit.a / device.current_max_na;
      device.c[1] = device.current_max_na / fit.b;
      return;
    }
    unknown_time("sonos", "0, 86400, 172800, 259200, 345600 and 432000");
  }
}

}  // namespace

// One number of a table, a polynomial or a function.
void Structure::put(const Place& place, const std::string& name, float value, Device& device,
                    std::string& parameters) const {
  const bool positive = place.family == Place::kStd || place.family == Place::kTarget;
  if (!std::isfinite(value) || (positive && value < 0)) {
    throw Error("node '" + node + "', control input 'device': entry '" + name + "' is " + number(value) +
                "; expected a finite number" + (positive ? " from 0" : ""));
  }
  const auto first = static_cast<size_t>(place.first);
  const auto second = static_cast<size_t>(place.second);
  switch (place.family) {
    case Place::kCoefficient:
      device.c[first] = value;
      break;
    case Place::kTarget:
      device.table.target_us[first] = value;
      break;
    case Place::kTableTime:
      device.table.time_s[first] = value;
      break;
    case Place::kMean:
      device.table.mean_us[first][second] = value;
      break;
    case Place::kStd:
      device.table.std_us[first][second] = value;
      break;
    case Place::kParameter: {
      std::ostringstream text;
      text.precision(9);
      text << '"' << name.substr(std::string("program.parameter.").size()) << "\": " << value;
      parameters += (parameters.empty() ? "" : ", ") + text.str();
    }
  }
}

Device Structure::device(const float* values, int64_t count) const {
  const std::string where = "node '" + node + "', control input 'device': ";
  if (count != static_cast<int64_t>(entries.size())) {
    throw Error(where + "it has " + std::to_string(count) + " entries; expected " + std::to_string(entries.size()));
  }
  Device device;
  device.values.assign(values, values + count);
  device.table.target_us.resize(static_cast<size_t>(table_points_));
  device.table.time_s.resize(static_cast<size_t>(table_times_));
  device.table.mean_us.assign(static_cast<size_t>(table_times_), device.table.target_us);
  device.table.std_us.assign(static_cast<size_t>(table_times_), device.table.target_us);
  std::string parameters;
  for (size_t i = 0; i < entries.size(); ++i) {
    const double value = values[i];
    const std::string& name = entries[i];
    if (places_[i].known == nullptr) {
      if (!dynamic()) put(places_[i], name, values[i], device, parameters);  // of programming
      continue;
    }
    const Entry& entry = *places_[i].known;
    const bool whole = entry.kind == Entry::kZeroOrWhole;
    bool in_range = entry.kind == Entry::kAbove ? value > entry.low : value >= entry.low;
    in_range = in_range && value <= entry.high && (!whole || std::floor(value) == value);
    if (!in_range && !(whole && value == 0)) {  // also when it is not a number
      const std::string upper = entry.high < 1e30 ? (whole ? " to " : " and at most ") + number(entry.high) : "";
      const std::string lower = entry.kind == Entry::kAbove ? "more than "
                                : whole                     ? "0 or a whole number from "
                                                            : "at least ";
      throw Error(where + "entry '" + name + "' is " + number(value) + "; expected " + lower +
                  (entry.low < -1e30 ? "any finite number" : number(entry.low)) + upper);
    }
    // A stored site has no use for write.sigma, a dynamic one none for program.sigma: they share a field.
    const bool other_kind = starts_with(name, dynamic() ? "program." : "write.");
    if (!other_kind) device.*entry.field = values[i];
  }
  device.parameters_json = "{" + parameters + "}";
  if (!dynamic()) set_timed_coefficients(static_cast<TimedModel>(timed_), node, device);
  check_device(device);
  return device;
}

void Structure::check_device(const Device& device) const {
  const std::string where = "node '" + node + "', control input 'device': ";
  if (has("mapping.g_min_us") && !(device.g_min_us < device.g_max_us)) {
    throw Error(where + "entry 'mapping.g_min_us' is " + number(device.g_min_us) +
                "; expected less than 'mapping.g_max_us', which is " + number(device.g_max_us));
  }
  if (!(static_cast<double>(device.stuck_low) + device.stuck_high <= 1.0)) {
    throw Error(where + "entries 'faults.stuck_low' and 'faults.stuck_high' are " + number(device.stuck_low) + " and " +
                number(device.stuck_high) + "; expected a sum of at most 1");
  }
  if (encoding == Encoding::kOffset && slice_bits == 0 && device.cell_bits == 1) {
    throw Error(where + "entry 'mapping.cell_bits' is 1; expected 0 or at least 2 because 'encoding' is 'offset'");
  }
  if (!dynamic() && disturbance == Disturbance::kLevelShared && slice_bits == 0 && device.cell_bits == 0) {
    throw Error(where + "entry 'mapping.cell_bits' is 0; expected at least 1 because 'program' is 'level_shared'");
  }
  if (!dynamic() && drift == Drift::kCmo && device.drift_time_s > 0 && device.drift_time_s < 1) {
    throw Error(where + "entry 'drift.time_s' is " + number(device.drift_time_s) +
                "; expected 0 or at least 1 because 'drift' is 'cmo'");
  }
  if (dac_slice_bits > 0 && (device.dac_bits == 0 || device.dac_steps_given != 0 || device.dac_bound != 1)) {
    throw Error(where + "input slices need 'dac.bits' above 0, 'dac.steps' 0 and 'dac.bound' 1; they are " +
                number(device.dac_bits) + ", " + number(device.dac_steps_given) + " and " + number(device.dac_bound));
  }
  if (adc == Range::kGranular && device.adc_bits == 0) {
    throw Error(where + "entry 'adc.bits' is 0; expected at least 2 because 'adc' is 'granular'");
  }
  for (const std::vector<float>* rising : {&device.table.target_us, &device.table.time_s}) {
    for (size_t i = 1; i < rising->size(); ++i) {
      if (!((*rising)[i - 1] < (*rising)[i])) throw Error(where + "targets and times of the table must rise");
    }
  }
  if (!device.table.time_s.empty() && !(device.table.time_s[0] > 0)) {
    throw Error(where + "entry 'program.table_time_s.0' must be more than 0");
  }
}

namespace {

// Five whole numbers for each axis, as "3,2,1,1,1;3,2,1,1,1".
std::vector<WindowAxis> parse_window(const std::string& node, const std::string& text) {
  const auto fail = [&] {
    throw Error("node '" + node + "', attribute 'window' is '" + text +
                "'; expected size,stride,dilation,padding before,padding after for each of 1 to 3 axes, separated by " +
                "';', the first three from 1, none above " + std::to_string(kMost));
  };
  std::vector<WindowAxis> window;
  int64_t numbers[5] = {};
  int count = 0;
  int64_t places = 1;
  size_t begin = 0;
  while (!text.empty() && begin <= text.size()) {
    const size_t end = std::min(text.find_first_of(",;", begin), text.size());
    if (end == begin || end - begin > 10 || count == 5) fail();
    int64_t value = 0;
    for (size_t i = begin; i < end; ++i) {
      if (text[i] < '0' || text[i] > '9') fail();
      value = 10 * value + (text[i] - '0');
    }
    if (value > kMost || (count < 3 && value < 1)) fail();
    numbers[count++] = value;
    if (end == text.size() || text[end] == ';') {
      if (count != 5 || window.size() == 3) fail();
      places *= numbers[0];
      if (places > kMost) fail();
      window.push_back({numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]});
      count = 0;
    }
    begin = end + 1;
  }
  return window;
}

}  // namespace

bool may_be_absent(const char* attribute) { return std::string(attribute) == "window"; }

Structure parse_structure(const std::string& node, Operator kind,
                          const std::function<int64_t(const char*)>& int_attribute,
                          const std::function<std::string(const char*)>& string_attribute) {
  const bool dynamic = kind == Operator::kDynamic;
  const auto fail = [&](const char* attribute, const std::string& problem) {
    throw Error("node '" + node + "', attribute '" + attribute + "' " + problem);
  };
  const auto count = [&](const char* attribute, int64_t low, int64_t high = kMost) {
    const int64_t value = int_attribute(attribute);
    if (value < low || value > high) {
      fail(attribute,
           "is " + std::to_string(value) + "; expected " + std::to_string(low) + " to " + std::to_string(high));
    }
    return value;
  };
  if (int_attribute("format") != kFormat) {
    throw Error("node '" + node + "' is written in format " + std::to_string(int_attribute("format")) +
                ", this library knows format " + std::to_string(kFormat) + "; update emu or rewrite the model");
  }
  const auto chosen = [&](const char* attribute, const auto& values) {
    return choice(node, attribute, string_attribute(attribute), values);
  };

  Structure structure;
  structure.node = node;
  structure.kind = kind;
  structure.site = count("site", 0);
  structure.sites = count("sites", 1);
  if (structure.site >= structure.sites) {
    fail("site", "is " + std::to_string(structure.site) + "; expected less than attribute 'sites', which is " +
                     std::to_string(structure.sites));
  }
  structure.array = count("array", 0);
  structure.sample_axis = count("sample_axis", -1, 1);
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
    fail("heads", "is 0; expected at least 1 because 'head_axis' is '" + string_attribute("head_axis") + "'");
  }
  if (structure.head_groups != 1 && structure.head_axis != HeadAxis::kOutput) {
    fail("head_groups",
         "is " + std::to_string(structure.head_groups) + "; expected 1 because 'head_axis' is not 'output'");
  }
  if (dynamic && structure.head_axis != HeadAxis::kNone && structure.head_axis != HeadAxis::kMatrix) {
    fail("head_axis",
         "is '" + string_attribute("head_axis") + "', which does not fit this operator; expected none or matrix");
  }
  structure.balanced = chosen("tile_split", std::map<std::string, bool>{{"fill", false}, {"balanced", true}});
  structure.scaling = chosen("scaling", std::map<std::string, Scaling>{{"tensor", Scaling::kTensor},
                                                                       {"column", Scaling::kColumn},
                                                                       {"tile", Scaling::kTile},
                                                                       {"tile_column", Scaling::kTileColumn}});
  TimedModel timed = TimedModel::kNone;
  if (dynamic) {
    structure.disturbance = chosen("write", write_models());
    structure.write_cells = chosen("write_cells", std::map<std::string, bool>{{"composite", false}, {"cells", true}});
    structure.write_per_sample =
        chosen("write_scaling", std::map<std::string, bool>{{"matrix", false}, {"sample", true}});
    if (structure.write_per_sample && structure.scaling != Scaling::kTensor) {
      fail("scaling", "is '" + string_attribute("scaling") + "'; expected tensor because 'write_scaling' is 'sample'");
    }
  } else {
    structure.fault_source = chosen("fault_source", std::map<std::string, FaultSource>{{"none", FaultSource::kNone},
                                                                                       {"random", FaultSource::kRandom},
                                                                                       {"list", FaultSource::kList}});
    structure.fault_storage =
        chosen("fault_storage",
               std::map<std::string, FaultStorage>{
                   {"none", FaultStorage::kNone}, {"int", FaultStorage::kInt}, {"float32", FaultStorage::kFloat32}});
    structure.fault_bits = count("fault_bits", 2, 16);
    if (!is_code_width(structure.fault_bits)) {
      fail("fault_bits", "is " + std::to_string(structure.fault_bits) + "; expected 2, 4, 8 or 16");
    }
    structure.fault_asymmetric =
        chosen("fault_range", std::map<std::string, bool>{{"symmetric", false}, {"asymmetric", true}});
    structure.fault_per_column =
        chosen("fault_scale", std::map<std::string, bool>{{"tensor", false}, {"column", true}});
    structure.fault_mask = static_cast<uint64_t>(count("fault_mask", 0, 0xFFFFFFFFll));
    structure.protection =
        chosen("fault_protection", std::map<std::string, Protection>{{"none", Protection::kNone},
                                                                     {"secded", Protection::kSecded},
                                                                     {"secded_zero", Protection::kSecdedZero}});
    structure.encoding = chosen("encoding", std::map<std::string, Encoding>{{"weight", Encoding::kWeight},
                                                                            {"differential", Encoding::kDifferential},
                                                                            {"two_sided", Encoding::kTwoSided},
                                                                            {"offset", Encoding::kOffset}});
    structure.unit_column =
        chosen("offset_correction", std::map<std::string, bool>{{"digital", false}, {"unit_column", true}});
    structure.unit_column = structure.unit_column && structure.encoding == Encoding::kOffset;
    structure.weight_bits = count("weight_bits", 0, 16);
    if (structure.weight_bits == 1) fail("weight_bits", "is 1; expected 0 or 2 to 16");
    structure.slice_bits = count("slice_bits", 0, 8);
    const ProgramModel model = chosen("program", program_models());
    structure.disturbance = model.disturbance;
    timed = model.timed;
    structure.program_function = string_attribute("program_function");
    structure.clip_to_range = chosen("program_clip", std::map<std::string, bool>{{"zero", false}, {"range", true}});
    structure.drift = chosen("drift", std::map<std::string, Drift>{{"none", Drift::kNone},
                                                                   {"power_law", Drift::kPowerLaw},
                                                                   {"pcm", Drift::kPcm},
                                                                   {"hermes_pair", Drift::kHermesPair},
                                                                   {"hermes_single", Drift::kHermesSingle},
                                                                   {"state_independent", Drift::kStateIndependent},
                                                                   {"cmo", Drift::kCmo}});
    structure.net_pairs = chosen("drift_pairs", std::map<std::string, bool>{{"physical", false}, {"net", true}});
    structure.compensation =
        chosen("compensation", std::map<std::string, Compensation>{{"none", Compensation::kNone},
                                                                   {"global", Compensation::kGlobal},
                                                                   {"global_exact", Compensation::kGlobalExact},
                                                                   {"column", Compensation::kColumn},
                                                                   {"column_exact", Compensation::kColumnExact}});
    structure.table_times_ = count("table_times", 0, kMostTableValues);
    structure.table_points_ = count("table_points", 0, kMostTableValues);
    if (structure.table_times_ * structure.table_points_ > kMostTableValues) {
      fail("table_points", "is " + std::to_string(structure.table_points_) + "; expected at most " +
                               std::to_string(kMostTableValues) + " together with 'table_times', which is " +
                               std::to_string(structure.table_times_));
    }
  }
  const std::map<std::string, Range> dac_ranges = {
      {"none", Range::kNone}, {"fixed", Range::kFixed}, {"absmax", Range::kAbsMax}, {"calibrated", Range::kCalibrated}};
  std::map<std::string, Range> adc_ranges = dac_ranges;
  adc_ranges["rows"] = Range::kRows;
  adc_ranges["granular"] = Range::kGranular;
  structure.dac = chosen("dac", dac_ranges);
  structure.dac_offset_binary =
      chosen("dac_code", std::map<std::string, bool>{{"sign_magnitude", false}, {"offset_binary", true}});
  structure.dac_slice_bits = count("dac_slice_bits", 0, 8);
  structure.adc = chosen("adc", adc_ranges);
  structure.adc_code =
      chosen("adc_code", std::map<std::string, AdcCode>{{"sign_magnitude", AdcCode::kSignMagnitude},
                                                        {"offset_binary", AdcCode::kOffsetBinary},
                                                        {"twos_complement", AdcCode::kTwosComplement}});
  structure.adc_columns = count("adc_columns", 1);
  structure.iterative = chosen("bound_management", std::map<std::string, bool>{{"none", false}, {"iterative", true}});
  structure.weight_noise =
      chosen("read_noise", std::map<std::string, WeightNoise>{{"none", WeightNoise::kNone},
                                                              {"additive_constant", WeightNoise::kAdditiveConstant},
                                                              {"pcm_read", WeightNoise::kPcmRead},
                                                              {"proportional", WeightNoise::kProportional}});
  structure.ir_drop =
      chosen("ir_drop", std::map<std::string, IrDrop>{
                            {"none", IrDrop::kNone}, {"formula", IrDrop::kFormula}, {"network", IrDrop::kNetwork}});
  if (kind == Operator::kQuantized) {
    structure.code_bits = count("code_bits", 2, 16);
    structure.block_rows = count("block_rows", 0);
    if (!is_code_width(structure.code_bits)) {
      fail("code_bits", "is " + std::to_string(structure.code_bits) + "; expected 2, 4, 8 or 16");
    }
  }

  if (kind == Operator::kStored || kind == Operator::kQuantized) {
    structure.window = parse_window(node, string_attribute("window"));
    if (!structure.window.empty() && (structure.sample_axis == 1 || structure.head_axis != HeadAxis::kNone)) {
      throw Error("node '" + node + "', attribute 'window' is '" + string_attribute("window") +
                  "'; this needs attributes 'sample_axis' 0 or -1 and 'head_axis' none");
    }
  }

  // Combinations that mean nothing.
  const bool weights = structure.encoding == Encoding::kWeight;
  const bool pairs = structure.encoding == Encoding::kDifferential;
  const bool sliced = structure.slice_bits > 0;
  const bool weight_model =
      structure.disturbance >= Disturbance::kLognormal && structure.disturbance <= Disturbance::kGaussRange;
  const bool any_model = structure.disturbance == Disturbance::kNone || structure.disturbance == Disturbance::kFunction;
  const auto refuse = [&](bool wrong, const char* attribute, const char* value, const char* why) {
    if (wrong) fail(attribute, std::string("is '") + value + "'; " + why);
  };
  if (!dynamic) {
    const std::string program = string_attribute("program");
    refuse(weights && !weight_model && !any_model, "program", program.c_str(),
           "it disturbs conductances and needs attribute 'encoding' to be differential, two_sided or offset");
    refuse(!weights && weight_model, "program", program.c_str(),
           "it disturbs numbers and needs attribute 'encoding' to be weight");
    refuse(sliced && (weights || structure.encoding == Encoding::kTwoSided || structure.weight_bits == 0), "slice_bits",
           std::to_string(structure.slice_bits).c_str(),
           "slices need 'weight_bits' and attribute 'encoding' to be differential or offset");
    refuse(sliced && structure.disturbance == Disturbance::kFunction, "program", program.c_str(),
           "a function cannot program slices");
    refuse(structure.unit_column && structure.disturbance == Disturbance::kFunction, "offset_correction", "unit_column",
           "a function programs arrays, not the column beside them");
    refuse(structure.disturbance == Disturbance::kFunction && structure.program_function.empty(), "program_function",
           "", "expected the name of a function");
    refuse(structure.drift != Drift::kNone && weights, "drift", string_attribute("drift").c_str(),
           "only conductances drift: choose another 'encoding' than weight");
    refuse(structure.net_pairs && (!pairs || sliced), "drift_pairs", "net",
           "this needs attribute 'encoding' to be differential, without slices");
    refuse(structure.compensation != Compensation::kNone && structure.drift == Drift::kNone, "compensation",
           string_attribute("compensation").c_str(), "there is no drift to compensate");
    refuse((structure.compensation == Compensation::kGlobal || structure.compensation == Compensation::kColumn) &&
               (sliced || structure.encoding == Encoding::kOffset),
           "compensation", string_attribute("compensation").c_str(),
           "with slices or an offset only the exact ones are defined");
    refuse(structure.fault_storage == FaultStorage::kFloat32 && (!weights || kind == Operator::kQuantized),
           "fault_storage", "float32", "this needs attribute 'encoding' to be weight, and float weights");
    refuse(structure.ir_drop == IrDrop::kNetwork && weights, "ir_drop", "network",
           "wires need conductances: choose another 'encoding' than weight");
    const int stored_bits = structure.stored_bits();
    if (kind == Operator::kQuantized) structure.fault_mask &= (uint64_t{1} << stored_bits) - 1;
    const bool all_bits = structure.fault_mask == (uint64_t{1} << stored_bits) - 1;
    refuse(structure.fault_storage != FaultStorage::kNone && structure.fault_mask >> stored_bits != 0, "fault_mask",
           std::to_string(structure.fault_mask).c_str(), "it names bits that the stored codes do not have");
    refuse(structure.fault_storage != FaultStorage::kNone && structure.protection != Protection::kNone && !all_bits,
           "fault_protection", string_attribute("fault_protection").c_str(),
           "it needs every bit of a code in 'fault_mask'");
  } else {
    refuse(structure.ir_drop == IrDrop::kNetwork, "ir_drop", "network", "it is for stored weights only");
  }
  if (structure.iterative && structure.adc != Range::kFixed) {
    throw Error("node '" + node +
                "', attribute 'bound_management' is 'iterative'; this needs attribute 'adc' to be 'fixed'");
  }
  refuse(structure.iterative && (sliced || structure.dac_slice_bits > 0 || structure.encoding == Encoding::kOffset),
         "bound_management", "iterative", "it is not defined with slices or an offset");
  refuse(structure.dac_slice_bits > 0 && (structure.dac == Range::kNone || structure.dac_offset_binary),
         "dac_slice_bits", std::to_string(structure.dac_slice_bits).c_str(),
         "input slices need a DAC with attribute 'dac_code' sign_magnitude");

  std::stringstream names(string_attribute("entries"));
  for (std::string name; std::getline(names, name, ',');) {
    Place place;
    if (!find_place(name, place)) {
      throw Error("node '" + node + "', attribute 'entries': '" + name +
                  "' is unknown to this library; update emu or rewrite the model");
    }
    if (!structure.index_of_.emplace(name, structure.entries.size()).second) {
      throw Error("node '" + node + "', attribute 'entries': '" + name + "' stands twice");
    }
    structure.entries.push_back(name);
    structure.places_.push_back(place);
  }
  structure.has_output_noise_ = structure.has("read.output_noise");
  structure.has_input_noise_ = structure.has("read.input_noise");
  structure.has_adc_errors_ = structure.has("adc.gain_sigma") && structure.adc != Range::kNone;
  structure.has_stuck_ =
      !dynamic && structure.has("faults.stuck_low") && structure.fault_source == FaultSource::kRandom;
  structure.timed_ = static_cast<int>(timed);
  refuse(structure.has_input_noise_ && structure.dac_slice_bits > 0, "dac_slice_bits",
         std::to_string(structure.dac_slice_bits).c_str(), "input noise is not defined with input slices");
  if (!dynamic) {
    refuse(structure.has("program.modifier") && (sliced || structure.encoding == Encoding::kOffset), "entries",
           "program.modifier", "it is not defined with slices or an offset");
    refuse(structure.has("faults.stuck_low") && weights, "entries", "faults.stuck_low",
           "stuck cells need conductances: choose another 'encoding' than weight");
    refuse(structure.has("mapping.cell_bits") && (weights || sliced), "entries", "mapping.cell_bits",
           "it needs conductances without slices");
    refuse(structure.disturbance == Disturbance::kLevelShared && !sliced && !structure.has("mapping.cell_bits"),
           "program", "level_shared", "it needs levels: entry 'mapping.cell_bits' or slices");
  }

  // Entries that the structure needs.
  std::vector<std::string> needed;
  const auto need = [&](std::initializer_list<const char*> more) {
    needed.insert(needed.end(), more.begin(), more.end());
  };
  const Disturbance model = structure.disturbance;
  if (dynamic) {
    if (model != Disturbance::kNone) need({"write.sigma"});
    if (model == Disturbance::kClipFormer) need({"write.gamma", "write.alpha", "write.beta", "write.bits"});
    if (model == Disturbance::kClipFormer || model == Disturbance::kLognormalConductance) {
      need({"mapping.g_min_us", "mapping.g_max_us"});
    }
  } else {
    if (model >= Disturbance::kLognormal && model <= Disturbance::kUniformInverse) {
      need({"program.sigma", "program.sigma_cycle"});
    }
    if (model == Disturbance::kLevelShared || model == Disturbance::kResistanceRange) need({"program.sigma"});
    if (model == Disturbance::kResistanceRange) need({"program.sigma_off"});
    if (model == Disturbance::kPolynomial || model == Disturbance::kSaturating || model == Disturbance::kTable) {
      need({"program.scale"});
    }
    if (timed != TimedModel::kNone || (model == Disturbance::kTable && structure.table_times_ > 1)) {
      need({"program.time_s"});
    }
    if (timed == TimedModel::kSonos) need({"program.current_max_na"});
    if (model == Disturbance::kPolynomial && timed == TimedModel::kNone) {
      need({"program.c0", "program.c1", "program.c2", "program.c3", "program.c4", "program.reference_us"});
    }
    if (!weights) need({"mapping.g_min_us", "mapping.g_max_us"});
    if (structure.drift != Drift::kNone) need({"drift.time_s", "drift.scale"});
    if (structure.drift == Drift::kPowerLaw) need({"drift.nu", "drift.nu_sigma", "drift.t0_s"});
    if (structure.drift != Drift::kNone && structure.drift != Drift::kPowerLaw) need({"drift.read_scale"});
    if (structure.fault_source == FaultSource::kRandom && structure.fault_storage != FaultStorage::kNone) {
      need({"faults.ber"});
    }
    if (structure.has("faults.stuck_low")) need({"faults.stuck_high"});
    if (structure.ir_drop == IrDrop::kNetwork) need({"read.row_ohm", "read.column_ohm"});
  }
  if (structure.dac != Range::kNone) need({"dac.bits", "dac.steps", "dac.bound"});
  if (structure.dac == Range::kFixed) need({"dac.max"});
  if (structure.adc != Range::kNone) need({"adc.bits", "adc.steps"});
  if (structure.adc == Range::kFixed) need({"adc.bound"});
  if (structure.has("adc.gain_sigma")) need({"adc.offset_sigma"});
  if (structure.iterative) need({"adc.max_bound_factor", "adc.max_bound_resolution"});
  if (structure.weight_noise != WeightNoise::kNone) need({"read.weight_noise"});
  if (structure.ir_drop == IrDrop::kFormula) need({"read.ir_drop", "read.ir_drop_ratio"});
  structure.check_entries(needed);
  return structure;
}

void Structure::require(const std::string& entry) const {
  if (!has(entry.c_str())) {
    throw Error("node '" + node + "', attribute 'entries' lacks '" + entry + "', which its other attributes need");
  }
}

void Structure::check_entries(const std::vector<std::string>& needed) const {
  for (const std::string& name : needed) require(name);
  // Names with indices must lie inside the table, which only stored nodes know.
  for (size_t i = 0; i < entries.size(); ++i) {
    const Place& place = places_[i];
    if (place.known != nullptr) continue;
    bool fits = true;
    switch (place.family) {
      case Place::kCoefficient:
        fits = inside(place.first, 5);
        break;
      case Place::kTarget:
        fits = inside(place.first, table_points_);
        break;
      case Place::kTableTime:
        fits = inside(place.first, table_times_);
        break;
      case Place::kMean:
      case Place::kStd:
        fits = inside(place.first, table_times_) && inside(place.second, table_points_);
        break;
      case Place::kParameter:
        break;
    }
    if (!fits && (place.family == Place::kCoefficient || !dynamic())) {
      throw Error("node '" + node + "', attribute 'entries': '" + entries[i] +
                  "' is unknown to this library; update emu or rewrite the model");
    }
  }
  check_table();
}

void Structure::check_table() const {
  if (dynamic() || disturbance != Disturbance::kTable) return;
  if (table_times_ < 1 || table_points_ < 1) {
    throw Error("node '" + node +
                "', attributes 'table_times' and 'table_points' must be at least 1 because 'program' is 'table'");
  }
  for (int64_t i = 0; i < table_points_; ++i) require("program.target_us." + std::to_string(i));
  for (int64_t j = 0; j < table_times_; ++j) {
    require("program.table_time_s." + std::to_string(j));
    for (int64_t i = 0; i < table_points_; ++i) {
      const std::string place = std::to_string(j) + "." + std::to_string(i);
      require("program.mean_us." + place);
      require("program.std_us." + place);
    }
  }
}

}  // namespace emu
