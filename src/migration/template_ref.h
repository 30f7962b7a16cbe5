// A stored template as messages name it.
#pragma once

#include "memory/template_info.h"
#include "proto/config.pb.h"

namespace fvmm::migration {

inline v1::TemplateRef to_ref(const memory::TemplateInfo& info) {
  v1::TemplateRef ref;
  ref.set_id(info.id.raw());
  ref.set_name(info.name);
  ref.set_generation(info.generation);
  ref.set_digest(info.digest.raw());
  ref.set_memory_bytes(info.memory_bytes);
  return ref;
}

}  // namespace fvmm::migration
