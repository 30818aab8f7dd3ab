#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "problems.hpp"
#include "text.hpp"

/// Strict reading of JSON tables: an unknown key, a missing key and a value of the wrong type are
/// all reported together, each with its place in the file.
namespace densenet_deploy {

using Json = nlohmann::json;

/// At most 60 characters of a value, for messages.
inline std::string show_value(const Json& value) {
  if (value.is_structured()) return value.is_array() ? "a list" : "a table";
  const std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() <= 60 ? text : text.substr(0, 57) + "...";
}

inline void mistyped(const Json& value, const std::string& where, const char* expected,
                     Problems& problems) {
  problems.add(where + " is " + show_value(value) + ", expected " + expected);
}

inline void read_value(const Json& value, const std::string& where, Problems& problems,
                       std::string& out) {
  if (!value.is_string()) return mistyped(value, where, "a string", problems);
  out = value.get<std::string>();
}

inline void read_value(const Json& value, const std::string& where, Problems& problems, bool& out) {
  if (!value.is_boolean()) return mistyped(value, where, "true or false", problems);
  out = value.get<bool>();
}

inline void read_value(const Json& value, const std::string& where, Problems& problems,
                       std::int64_t& out) {
  const bool fits = value.is_number_integer() &&
                    !(value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX);
  if (!fits) return mistyped(value, where, "an integer", problems);
  out = value.get<std::int64_t>();
}

inline void read_value(const Json& value, const std::string& where, Problems& problems,
                       double& out) {
  if (!value.is_number() || !std::isfinite(value.get<double>())) {
    return mistyped(value, where, "a number", problems);
  }
  out = value.get<double>();
}

template <class T>
void read_value(const Json& value, const std::string& where, Problems& problems,
                std::vector<T>& out) {
  if (!value.is_array()) return mistyped(value, where, "a list", problems);
  for (std::size_t index = 0; index < value.size() && !problems.full(); ++index) {
    out.emplace_back();
    read_value(value[index], where + "[" + std::to_string(index) + "]", problems, out.back());
  }
}

template <class T>
void read_value(const Json& value, const std::string& where, Problems& problems,
                std::map<std::string, T>& out) {
  if (!value.is_object()) return mistyped(value, where, "a table", problems);
  for (const auto& [key, item] : value.items()) {
    if (problems.full()) return;
    read_value(item, where + "." + key, problems, out[key]);
  }
}

/// Reads one table key by key; `finish` reports the keys that nobody asked for.
class TableReader {
 public:
  TableReader(const Json& table, std::string where, Problems& problems)
      : table_(table), where_(std::move(where)), problems_(problems) {
    if (!table.is_object()) mistyped(table, where_, "a table", problems);
  }

  template <class T>
  TableReader& required(const std::string& key, T& out) {
    if (find(key) == nullptr && table_.is_object()) problems_.add(place(key) + " is missing");
    return optional(key, out);
  }

  template <class T>
  TableReader& optional(const std::string& key, T& out) {
    if (const Json* value = find(key)) read_value(*value, place(key), problems_, out);
    return *this;
  }

  /// A key whose value is another reader's business, or nobody's; null where there is none.
  const Json* any(const std::string& key) { return find(key); }

  void finish() const {
    if (!table_.is_object()) return;
    const std::vector<std::string> valid(known_.begin(), known_.end());
    for (const auto& [key, value] : table_.items()) {
      if (problems_.full()) return;
      if (known_.count(key) == 0) {
        problems_.add("unknown key " + show_value(key) + " in " +
                      (where_.empty() ? "the file" : where_) + "; valid keys: " + joined(valid));
      }
    }
  }

 private:
  std::string place(const std::string& key) const {
    return where_.empty() ? key : where_ + " " + key;
  }

  const Json* find(const std::string& key) {
    known_.insert(key);
    if (!table_.is_object()) return nullptr;
    const auto found = table_.find(key);
    return found == table_.end() ? nullptr : &*found;
  }

  const Json& table_;
  std::string where_;
  Problems& problems_;
  std::set<std::string> known_;
};

}  // namespace densenet_deploy
