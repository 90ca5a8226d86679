#include "structure.h"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <unordered_map>

#include "ort.h"

namespace emu {

// The rows of emu/contract/schema.py. Text in words is that of messages.

// Why an entry must be there: what asks for it, and when.
struct Need {
  int attribute;
  bool (*applies)(const Given& it);
};

// One entry of the `device` input, or a family of entries with indices or a text of their own in their names.
struct NumberRow {
  const char* name;
  const char* start;        // of a family: its names up to the first index or text
  std::vector<int> counts;  // of a family: the attribute that each index stays below
  bool (*allows)(double value);
  const char* expected;
  float Device::* field;  // null for a family
  std::vector<Need> needed;
  int beside;                        // the entry without which it means nothing, -1: none
  bool (*without)(const Given& it);  // when a stored site may not have it; null: always may
  bool rises;
};

namespace {

constexpr int64_t kMostRowTiles = 1 << 16;

struct AttributeRow {
  const char* name;
  unsigned of;  // a bit for each operator
  bool may_be_absent;
  bool (*allows)(int64_t value);  // null for text
  const char* expected;
  std::vector<std::string> words;  // empty: any text
  int64_t absent_number;
  const char* absent_text;
};

struct AttributeRule {
  bool (*wrong)(const Given& it);
  std::string (*sentence)(const Given& it);
};

struct NumberRule {
  bool (*wrong)(const Given& it, const Device& device);
  std::string (*sentence)(const Given& it, const Device& device);
};

constexpr unsigned of(Operator kind) { return 1u << static_cast<unsigned>(kind); }

std::string shown(double value) {
  std::ostringstream text;
  text << value;
  return std::isnan(value) ? "nan" : text.str();
}
std::string shown(int64_t value) { return std::to_string(value); }
std::string shown(const std::string& value) { return value; }

bool one_of(const std::string& text, std::initializer_list<const char*> words) {
  return std::find(words.begin(), words.end(), text) != words.end();
}
#define EMU_CONTRACT_ROWS
#include "contract.inc"

// Of attributes that count or number something, so that no product of two overflows, and none is 0 in 32 bits.
constexpr int64_t kMost = INT32_MAX;

// Throws an Error that says a sentence about a node.
struct Refuse {
  std::string node;
  [[noreturn]] void operator()(const std::string& sentence) const { throw Error("node '" + node + "', " + sentence); }
};

bool starts_with(const std::string& text, const char* start) { return text.rfind(start, 0) == 0; }

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

// Indices and the rest of a name in a family; false where the name is not of this form.
bool indices_of(const NumberRow& row, const std::string& name, int64_t indices[2]) {
  size_t begin = std::string(row.start).size();
  if (row.counts.empty()) return name.size() > begin;
  for (size_t i = 0; i < row.counts.size(); ++i) {
    const bool last = i + 1 == row.counts.size();
    const size_t end = last ? name.size() : std::min(name.find('.', begin), name.size());
    indices[i] = index_at(name, begin, end);
    if (indices[i] < 0) return false;
    begin = end + 1;
  }
  return true;
}

// False where no entry has such a name.
bool find_place(const std::string& name, Place& place) {
  static const std::unordered_map<std::string, int> by_name = [] {
    std::unordered_map<std::string, int> entries;
    for (int i = 0; i < entry::count; ++i) {
      const NumberRow& row = number_rows()[static_cast<size_t>(i)];
      if (row.field != nullptr) entries[row.name] = i;
    }
    return entries;
  }();
  const auto found = by_name.find(name);
  place.entry = found == by_name.end() ? -1 : found->second;
  for (int i = 0; place.entry < 0 && i < entry::count; ++i) {
    const NumberRow& row = number_rows()[static_cast<size_t>(i)];
    if (row.field == nullptr && starts_with(name, row.start) && indices_of(row, name, place.indices)) place.entry = i;
  }
  if (place.entry < 0) return false;
  place.row = &number_rows()[static_cast<size_t>(place.entry)];
  place.stored = starts_with(name, "program.") || starts_with(name, "mapping.") || starts_with(name, "drift.") ||
                 starts_with(name, "faults.") || name == "read.row_ohm" || name == "read.column_ohm";
  place.of_readings = starts_with(name, "read.") || starts_with(name, "adc.");
  return true;
}

double steps(float bits, float steps_given, double less) {
  if (steps_given > 0) return steps_given;
  return bits > 0 ? std::exp2(static_cast<double>(bits)) - less : 0.0;
}

}  // namespace

const OperatorRow& operator_row(Operator kind) { return operator_rows()[static_cast<size_t>(kind)]; }

int input_place(Operator kind, const std::string& name) {
  const std::vector<OperatorInput>& inputs = operator_row(kind).inputs;
  const auto found =
      std::find_if(inputs.begin(), inputs.end(), [&](const OperatorInput& row) { return row.name == name; });
  return found == inputs.end() ? -1 : static_cast<int>(found - inputs.begin());
}

FloatType float_type(FaultStorage storage) {
  switch (storage) {
    case FaultStorage::kFloat16:
      return {5, 10, true};
    case FaultStorage::kBfloat16:
      return {8, 7, true};
    case FaultStorage::kFloat8E4m3:
      return {4, 3, false};
    case FaultStorage::kFloat8E5m2:
      return {5, 2, true};
    default:
      return {};
  }
}

int Structure::stored_bits() const {
  if (kind == Operator::kQuantized) return static_cast<int>(code_bits);
  const bool codes = fault_storage == FaultStorage::kNone || fault_storage == FaultStorage::kInt;
  return codes ? static_cast<int>(fault_bits) : float_type(fault_storage).bits();
}

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
  if (dac == InputRange::kNone) return 0.0;
  return steps(device.dac_bits, device.dac_steps, dac_code == DacCode::kOffsetBinary ? 1.0 : 2.0);
}

double Structure::adc_steps(const Device& device) const {
  if (adc == Range::kNone) return 0.0;
  const double less = adc_code == AdcCode::kSignMagnitude ? 2.0 : adc_code == AdcCode::kOffsetBinary ? 1.0 : 0.0;
  return steps(device.adc_bits, device.adc_steps, less);
}

std::vector<Span> Structure::split(int64_t size, int64_t largest) const {
  if (largest <= 0 || largest >= size) return {{0, size}};
  const int64_t count = (size + largest - 1) / largest;
  std::vector<Span> spans;
  int64_t begin = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t length = tile_split == TileSplit::kBalanced ? size / count + (i < size % count ? 1 : 0)
                                                              : std::min(largest, size - begin);
    spans.push_back({begin, begin + length});
    begin += length;
  }
  return spans;
}

std::vector<Span> Structure::column_groups(int64_t columns) const {
  return decides_per_tile() ? column_tiles(columns) : std::vector<Span>{{0, columns}};
}

void Structure::check_row_tiles(int64_t rows) const {
  const int64_t count = tile_rows > 0 ? (rows + tile_rows - 1) / tile_rows : 1;
  if (count <= kMostRowTiles) return;
  throw Error("node '" + node + "', attribute 'tile_rows' is " + std::to_string(tile_rows) + ", which cuts " +
              std::to_string(rows) + " rows into " + std::to_string(count) + " tiles, expected at most " +
              std::to_string(kMostRowTiles) + "; use taller tiles.");
}

void Structure::check_range_tiles(int64_t tiles, const char* operand) const {
  if (range_tiles == 1 || range_tiles == tiles) return;
  throw Error("node '" + node + "', attribute 'range_tiles' is " + std::to_string(range_tiles) + ", expected 1 or " +
              std::to_string(tiles) + ", the row tiles of '" + operand + "'.");
}

std::vector<Span> Structure::key_tiles(int64_t keys, int64_t largest, int64_t first) const {
  if (largest <= 0) return {{0, keys}};
  std::vector<Span> spans;
  for (int64_t begin = 0; begin < keys;) {
    const int64_t end = std::min(keys, (first + begin) / largest * largest + largest - first);
    spans.push_back({begin, end});
    begin = end;
  }
  return spans;
}

// One number of a table or of a function's parameters.
void Structure::put(const Place& place, const std::string& name, float value, Device& device) const {
  const auto first = static_cast<size_t>(place.indices[0]);
  const auto second = static_cast<size_t>(place.indices[1]);
  switch (place.entry) {
    case entry::program_target_us:
      device.table.target_us[first] = value;
      break;
    case entry::program_table_time_s:
      device.table.time_s[first] = value;
      break;
    case entry::program_mean_us:
      device.table.mean_us[first][second] = value;
      break;
    case entry::program_std_us:
      device.table.std_us[first][second] = value;
      break;
    case entry::drift_target_us:
      device.exponents.target[first] = value;
      break;
    case entry::drift_mean_nu:
      device.exponents.mean[first] = value;
      break;
    case entry::drift_std_nu:
      device.exponents.std[first] = value;
      break;
    default:
      device.parameter_names.push_back(name.substr(std::string(place.row->start).size()));
      device.parameters.push_back(value);
  }
}

Device Structure::device(const float* values, int64_t count) const {
  const Refuse refuse{node};
  if (count != static_cast<int64_t>(entries.size())) {
    refuse("input 'device' has shape [" + std::to_string(count) + "], expected [" + std::to_string(entries.size()) +
           "], one number for each name in 'entries'.");
  }
  Device device;
  device.values.assign(values, values + count);
  const auto times = static_cast<size_t>(given_.number(attribute::table_times));
  device.table.target_us.resize(static_cast<size_t>(given_.number(attribute::table_points)));
  device.table.time_s.resize(times);
  device.table.mean_us.assign(times, device.table.target_us);
  device.table.std_us.assign(times, device.table.target_us);
  device.exponents.target.resize(static_cast<size_t>(given_.number(attribute::drift_points)));
  device.exponents.mean = device.exponents.std = device.exponents.target;
  for (size_t i = 0; i < entries.size(); ++i) {
    const NumberRow& row = *places_[i].row;
    if (!row.allows(values[i])) {
      refuse("entry '" + entries[i] + "' of input 'device' is " + shown(double{values[i]}) + ", expected " +
             row.expected + ".");
    }
    if (row.field != nullptr) {
      device.*row.field = values[i];
    } else if (!dynamic()) {
      put(places_[i], entries[i], values[i], device);
    }
  }
  check(device);
  return device;
}

// Checks numbers against each other and against the attributes.
void Structure::check(const Device& device) const {
  const Refuse refuse{node};
  for (const NumberRule& rule : number_rules()) {
    if (rule.wrong(given_, device)) refuse(rule.sentence(given_, device));
  }
  const std::pair<int, const std::vector<float>*> rising[] = {{entry::program_target_us, &device.table.target_us},
                                                              {entry::program_table_time_s, &device.table.time_s},
                                                              {entry::drift_target_us, &device.exponents.target}};
  for (const auto& [entry, numbers] : rising) {
    const NumberRow& row = number_rows()[static_cast<size_t>(entry)];
    if (dynamic() || !row.needed[0].applies(given_)) continue;
    for (size_t i = 1; i < numbers->size(); ++i) {
      const double before = (*numbers)[i - 1], value = (*numbers)[i];
      if (value > before) continue;
      refuse("entry '" + (row.start + std::to_string(i)) + "' of input 'device' is " + shown(value) +
             ", expected greater than the one before it, which is " + shown(before) + ".");
    }
  }
}

namespace {

// Five whole numbers for each axis, as "3,2,1,1,1;3,2,1,1,1".
std::vector<WindowAxis> parse_window(const Refuse& refuse, const std::string& text) {
  const auto fail = [&] {
    refuse("attribute 'window' is '" + text +
           "', expected size,stride,dilation,padding before,padding after for each of 1 to 3 axes, separated by ';', "
           "the first three from 1, none above " +
           std::to_string(kMost) + ".");
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

// Each attribute by itself; those that the operator lacks have the value that switches their effect off.
Given legal_values(const Refuse& refuse, Operator kind, const std::function<int64_t(const char*)>& int_attribute,
                   const std::function<std::string(const char*)>& string_attribute) {
  Given given;
  given.kind = kind;
  given.there.resize(entry::count);
  for (const AttributeRow& row : attribute_rows()) {
    const bool has = (row.of & of(kind)) != 0;
    int64_t number = row.absent_number;
    std::string text = row.absent_text;
    if (row.allows != nullptr) {
      if (has) number = int_attribute(row.name);
      if (has && !row.allows(number)) {
        refuse("attribute '" + std::string(row.name) + "' is " + shown(number) + ", expected " + row.expected + ".");
      }
    } else {
      if (has) text = string_attribute(row.name);
      if (text.empty() && row.may_be_absent) text = row.absent_text;
      number = std::find(row.words.begin(), row.words.end(), text) - row.words.begin();
      if (!row.words.empty() && number == static_cast<int64_t>(row.words.size())) {
        refuse("attribute '" + std::string(row.name) + "' is '" + text + "', expected one of " + row.expected + ".");
      }
    }
    given.numbers.push_back(number);
    given.texts.push_back(std::move(text));
  }
  return given;
}

std::vector<std::string> split_names(const std::string& text) {
  std::vector<std::string> names;
  for (size_t begin = 0; !text.empty() && begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    names.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return names;
}

// Whether the indices in an entry's name lie inside the table. A written operand has none, but reads a device that may.
bool inside_table(const Given& given, const Place& place) {
  if (given.kind == Operator::kDynamic) return true;
  for (size_t i = 0; i < place.row->counts.size(); ++i) {
    if (place.indices[i] >= given.number(place.row->counts[i])) return false;
  }
  return true;
}

// Where each entry goes; an unknown one or one that stands twice is refused.
std::vector<Place> places_of(const Refuse& refuse, const std::vector<std::string>& entries, const Given& given) {
  std::vector<Place> places;
  std::unordered_map<std::string, size_t> seen;
  for (const std::string& name : entries) {
    Place place;
    if (!find_place(name, place) || !inside_table(given, place)) {
      std::string known;
      for (const NumberRow& row : number_rows()) known += (known.empty() ? "" : ", ") + std::string(row.name);
      refuse("attribute 'entries' names '" + name + "', expected names among " + known + ".");
    }
    if (!seen.emplace(name, seen.size()).second) {
      refuse("attribute 'entries' names '" + name + "' twice, expected every name once.");
    }
    places.push_back(place);
  }
  return places;
}

// The names that a row stands for: itself, or all that a table has.
std::vector<std::string> members_of(const NumberRow& row, const Given& given) {
  if (row.counts.empty()) return {row.name};
  std::vector<std::string> members;
  for (int64_t i = 0; i < given.number(row.counts[0]); ++i) {
    const std::string first = row.start + std::to_string(i);
    if (row.counts.size() == 1) members.push_back(first);
    for (int64_t j = 0; row.counts.size() == 2 && j < given.number(row.counts[1]); ++j) {
      members.push_back(first + "." + std::to_string(j));
    }
  }
  return members;
}

// All entries that the attributes use must be there, and none that they exclude.
void check_entries(const Refuse& refuse, const std::vector<std::string>& entries, const Given& given) {
  const auto lacks = [&](const std::string& name, const std::string& reason) {
    refuse("attribute 'entries' lacks '" + name + "', expected it because " + reason + ".");
  };
  const auto named = [&](int attribute) { return std::string(attribute_rows()[static_cast<size_t>(attribute)].name); };
  const std::unordered_map<std::string, bool> names = [&] {
    std::unordered_map<std::string, bool> all;
    for (const std::string& name : entries) all[name] = true;
    return all;
  }();
  for (int i = 0; i < entry::count; ++i) {
    const NumberRow& row = number_rows()[static_cast<size_t>(i)];
    for (const Need& need : row.needed) {
      if (!need.applies(given)) continue;
      for (const std::string& name : members_of(row, given)) {
        if (names.count(name) > 0) continue;
        lacks(name, "'" + named(need.attribute) + "' is '" + given.text(need.attribute) + "'");
      }
    }
    if (!given.has(i)) continue;
    if (row.beside >= 0 && !given.has(row.beside)) {
      lacks(number_rows()[static_cast<size_t>(row.beside)].name, "'" + std::string(row.name) + "' is there");
    }
    if (row.without != nullptr && given.kind != Operator::kDynamic && row.without(given)) {
      refuse("attribute 'entries' names '" + std::string(row.name) + "', expected not to because 'encoding' is '" +
             given.text(attribute::encoding) + "' and 'slice_bits' is " + shown(given.number(attribute::slice_bits)) +
             ".");
    }
  }
}

Disturbance disturbance_of(Program program) {
  switch (program) {
    case Program::kNone:
      return Disturbance::kNone;
    case Program::kLognormalW:
      return Disturbance::kLognormal;
    case Program::kLognormalWMeancorr:
      return Disturbance::kLognormalMeanCorrected;
    case Program::kGaussProp:
      return Disturbance::kGaussProportional;
    case Program::kGaussRange:
      return Disturbance::kGaussRange;
    case Program::kLognormalG:
      return Disturbance::kLognormalConductance;
    case Program::kNormalIndependent:
      return Disturbance::kNormalIndependent;
    case Program::kNormalProportional:
      return Disturbance::kNormalProportional;
    case Program::kNormalInverse:
      return Disturbance::kNormalInverse;
    case Program::kUniformIndependent:
      return Disturbance::kUniformIndependent;
    case Program::kUniformProportional:
      return Disturbance::kUniformProportional;
    case Program::kUniformInverse:
      return Disturbance::kUniformInverse;
    case Program::kPolynomial:
      return Disturbance::kPolynomial;
    case Program::kSaturating:
      return Disturbance::kSaturating;
    case Program::kLevelShared:
      return Disturbance::kLevelShared;
    case Program::kResistanceRange:
      return Disturbance::kResistanceRange;
    case Program::kTable:
      return Disturbance::kTable;
    case Program::kFunction:
      return Disturbance::kFunction;
  }
  return Disturbance::kNone;
}

Disturbance disturbance_of(Write write) {
  switch (write) {
    case Write::kNone:
      return Disturbance::kNone;
    case Write::kLognormalW:
      return Disturbance::kLognormal;
    case Write::kLognormalWMeancorr:
      return Disturbance::kLognormalMeanCorrected;
    case Write::kGaussProp:
      return Disturbance::kGaussProportional;
    case Write::kGaussRange:
      return Disturbance::kGaussRange;
    case Write::kLognormalG:
      return Disturbance::kLognormalConductance;
    case Write::kClipformer:
      return Disturbance::kClipFormer;
  }
  return Disturbance::kNone;
}

// The values of checked attributes as the operators read them.
void fill(const Given& given, Structure& it) {
#define EMU_CONTRACT_FILL
#include "contract.inc"
  it.disturbance = it.dynamic() ? disturbance_of(it.write) : disturbance_of(it.program);
}

}  // namespace

bool may_be_absent(const char* attribute) { return number_if_absent(attribute).has_value(); }

std::optional<int64_t> number_if_absent(const char* attribute) {
  for (const AttributeRow& row : attribute_rows()) {
    if (row.may_be_absent && std::string(row.name) == attribute) return row.absent_number;
  }
  return {};
}

Structure parse_structure(const std::string& node, Operator kind,
                          const std::function<int64_t(const char*)>& int_attribute,
                          const std::function<std::string(const char*)>& string_attribute) {
  const Refuse refuse{node};
  Structure structure;
  structure.node = node;
  structure.kind = kind;
  Given& given = structure.given_;
  given = legal_values(refuse, kind, int_attribute, string_attribute);
  structure.window = parse_window(refuse, given.text(attribute::window));
  structure.entries = split_names(given.text(attribute::entries));
  for (const std::string& name : structure.entries) {
    Place place;
    if (find_place(name, place)) given.there[static_cast<size_t>(place.entry)] = true;
  }
  for (const AttributeRule& rule : attribute_rules()) {
    if (rule.wrong(given)) refuse(rule.sentence(given));
  }
  structure.places_ = places_of(refuse, structure.entries, given);
  check_entries(refuse, structure.entries, given);
  fill(given, structure);
  return structure;
}

}  // namespace emu
