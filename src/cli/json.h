// JSON as scripts want it, from protobuf messages by reflection: field names as in the .proto, ids as hex, enums as
// lower-case words ("running"), 64-bit numbers as numbers. Every scalar is present; a message that is not set is left
// out.
#pragma once

#include <string>
#include <string_view>

namespace google::protobuf {
class Message;
}

namespace fvmm::cli {

/// A JSON string with its quotes; bytes that are not UTF-8 become '?'.
std::string json_string(std::string_view text);
/// A number; null for what JSON cannot say (NaN, infinities).
std::string json_number(double value);
/// One JSON object on one line. Map fields are not supported (the interface has none).
std::string to_json(const google::protobuf::Message& message);
/// "running" for VM_RUNNING: the value's name without what all values of the enum have in front, in lower case.
std::string enum_word(std::string_view name);

/// Writes one object field by field, on one line, where the shape is not a message's.
class JsonObject {
 public:
  JsonObject& add(std::string_view name, std::string_view text) { return raw(name, json_string(text)); }
  JsonObject& add(std::string_view name, double value) { return raw(name, json_number(value)); }
  JsonObject& raw(std::string_view name, std::string_view json);
  [[nodiscard]] std::string str() const { return "{" + fields_ + "}"; }

 private:
  std::string fields_;
};

}  // namespace fvmm::cli
