#include "cli/json.h"

#include <fmt/format.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <cmath>

#include "base/id.h"
#include "control/frame.h"

namespace fvmm::cli {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

std::string hex_string(const std::string& raw) {
  return json_string(to_hex({reinterpret_cast<const std::byte*>(raw.data()), raw.size()}));
}

std::string single(const Message& message, const Reflection& fields, const FieldDescriptor& field) {
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return std::to_string(fields.GetInt32(message, &field));
    case FieldDescriptor::CPPTYPE_INT64:
      return std::to_string(fields.GetInt64(message, &field));
    case FieldDescriptor::CPPTYPE_UINT32:
      return std::to_string(fields.GetUInt32(message, &field));
    case FieldDescriptor::CPPTYPE_UINT64:
      return std::to_string(fields.GetUInt64(message, &field));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return json_number(fields.GetDouble(message, &field));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return json_number(static_cast<double>(fields.GetFloat(message, &field)));
    case FieldDescriptor::CPPTYPE_BOOL:
      return fields.GetBool(message, &field) ? "true" : "false";
    case FieldDescriptor::CPPTYPE_ENUM: {
      const auto* value = field.enum_type()->FindValueByNumber(fields.GetEnumValue(message, &field));
      return value == nullptr ? std::to_string(fields.GetEnumValue(message, &field))
                              : json_string(enum_word(value->name()));
    }
    case FieldDescriptor::CPPTYPE_STRING: {
      const std::string value = fields.GetString(message, &field);
      return field.type() == FieldDescriptor::TYPE_BYTES ? hex_string(value) : json_string(value);
    }
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return to_json(fields.GetMessage(message, &field));
  }
  return "null";
}

std::string element(const Message& message, const Reflection& fields, const FieldDescriptor& field, int i) {
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return std::to_string(fields.GetRepeatedInt32(message, &field, i));
    case FieldDescriptor::CPPTYPE_INT64:
      return std::to_string(fields.GetRepeatedInt64(message, &field, i));
    case FieldDescriptor::CPPTYPE_UINT32:
      return std::to_string(fields.GetRepeatedUInt32(message, &field, i));
    case FieldDescriptor::CPPTYPE_UINT64:
      return std::to_string(fields.GetRepeatedUInt64(message, &field, i));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return json_number(fields.GetRepeatedDouble(message, &field, i));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return json_number(static_cast<double>(fields.GetRepeatedFloat(message, &field, i)));
    case FieldDescriptor::CPPTYPE_BOOL:
      return fields.GetRepeatedBool(message, &field, i) ? "true" : "false";
    case FieldDescriptor::CPPTYPE_ENUM:
      return json_string(enum_word(fields.GetRepeatedEnum(message, &field, i)->name()));
    case FieldDescriptor::CPPTYPE_STRING: {
      const std::string value = fields.GetRepeatedString(message, &field, i);
      return field.type() == FieldDescriptor::TYPE_BYTES ? hex_string(value) : json_string(value);
    }
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return to_json(fields.GetRepeatedMessage(message, &field, i));
  }
  return "null";
}

}  // namespace

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : control::to_utf8(text)) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\r':
        out += "\\r";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
        } else {
          out += c;
        }
    }
  }
  return out + "\"";
}

std::string json_number(double value) {
  return std::isfinite(value) ? fmt::format("{}", value) : "null";
}

std::string enum_word(std::string_view name) {
  for (const std::string_view prefix : {"VM_STATE_", "VM_", "POKE_"}) {
    if (!name.starts_with(prefix)) continue;
    name.remove_prefix(prefix.size());
    break;
  }
  std::string word(name);
  for (char& c : word) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return word;
}

JsonObject& JsonObject::raw(std::string_view name, std::string_view json) {
  if (!fields_.empty()) fields_ += ',';
  fields_ += json_string(name);
  fields_ += ':';
  fields_ += json;
  return *this;
}

std::string to_json(const Message& message) {
  const Reflection& fields = *message.GetReflection();
  JsonObject object;
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor& field = *message.GetDescriptor()->field(i);
    if (!field.is_repeated()) {
      if (field.has_presence() && !fields.HasField(message, &field)) continue;
      object.raw(field.name(), single(message, fields, field));
      continue;
    }
    std::string list = "[";
    for (int k = 0; k < fields.FieldSize(message, &field); ++k) {
      if (k > 0) list += ',';
      list += element(message, fields, field, k);
    }
    object.raw(field.name(), list + "]");
  }
  return object.str();
}

}  // namespace fvmm::cli
