#include "daemon/fold_queue.h"

#include <algorithm>
#include <charconv>

#include "memory/template_format.h"

namespace fvmm::daemon {
namespace {

/// A line of generations counts as one.
std::string key_of(const std::string& name) {
  return memory::is_generation_name(name) ? name.substr(0, name.rfind('@') + 1) : name;
}

/// Of NAME@G: G. Digits, as is_generation_name() has checked; one too large for 64 bits is as new as can be.
std::uint64_t generation_of(const std::string& name) {
  std::uint64_t generation = 0;
  const char* const end = name.data() + name.size();
  const auto [at, error] = std::from_chars(name.data() + name.rfind('@') + 1, end, generation);
  return error == std::errc::result_out_of_range ? ~std::uint64_t{0} : generation;
}

}  // namespace

FoldQueue::Entry* FoldQueue::find(const std::string& name) {
  const auto found = entries_.find(key_of(name));
  return found == entries_.end() || found->second.name != name ? nullptr : &found->second;
}

bool FoldQueue::note(const std::string& name, SteadyTime now) {
  const std::string key = key_of(name);
  const bool ours = key != name;
  const auto known = entries_.find(key);
  if (known == entries_.end() && entries_.size() >= kFoldsWaitingMax) return false;
  if (known != entries_.end()) {
    const Entry& entry = known->second;
    if (ours && generation_of(entry.name) > generation_of(name)) return true;
    if (entry.name == name && entry.stage == Stage::kFolding) return true;  // its own exchange
  }
  entries_[key] = {.name = name, .due = ours ? now + times_.rest : now, .why = {}};
  return true;
}

std::optional<std::string> FoldQueue::take(SteadyTime now) {
  Entry* first = nullptr;
  for (auto& [key, entry] : entries_) {
    const bool waits = entry.stage == Stage::kWaiting || entry.stage == Stage::kPutOff;
    if (waits && entry.due <= now && (first == nullptr || entry.due < first->due)) first = &entry;
  }
  if (first == nullptr) return std::nullopt;
  first->stage = Stage::kFolding;
  return first->name;
}

std::optional<SteadyTime> FoldQueue::next_due() const {
  std::optional<SteadyTime> next;
  for (const auto& [key, entry] : entries_) {
    if (entry.stage != Stage::kWaiting && entry.stage != Stage::kPutOff) continue;
    if (!next || entry.due < *next) next = entry.due;
  }
  return next;
}

bool FoldQueue::superseded(const std::string& name) const {
  const auto found = entries_.find(key_of(name));
  return found != entries_.end() && found->second.name != name;
}

void FoldQueue::done(const std::string& name) {
  if (find(name) != nullptr) entries_.erase(key_of(name));
}

bool FoldQueue::put_off(const std::string& name, std::string why, SteadyTime now) {
  Entry* const entry = find(name);
  if (entry == nullptr) return false;
  std::chrono::milliseconds wait = times_.retry;
  for (unsigned i = 0; i < entry->retries && wait < times_.retry_max; ++i) wait *= 2;
  entry->due = now + std::min(wait, times_.retry_max);
  entry->stage = Stage::kPutOff;
  entry->why = std::move(why);
  return entry->retries++ == 0;
}

void FoldQueue::again(const std::string& name, SteadyTime now) {
  Entry* const entry = find(name);
  if (entry == nullptr) return;
  entry->due = now + times_.retry;
  entry->stage = Stage::kWaiting;
}

void FoldQueue::failed(const std::string& name, std::string why) {
  Entry* const entry = find(name);
  if (entry == nullptr) return;
  entry->stage = Stage::kFailed;
  entry->why = std::move(why);
}

std::string FoldQueue::state(const std::string& name) const {
  const auto found = entries_.find(key_of(name));
  if (found == entries_.end() || found->second.name != name) return "";
  switch (found->second.stage) {
    case Stage::kWaiting:
      return "waiting";
    case Stage::kFolding:
      return "folding";
    case Stage::kPutOff:
      return "put off: " + found->second.why;
    case Stage::kFailed:
      return "failed: " + found->second.why;
  }
  return "";
}

}  // namespace fvmm::daemon
