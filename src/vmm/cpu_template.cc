#include "vmm/cpu_template.h"

#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <optional>

#include "vmm/cpuid_names.h"

namespace fvmm::vmm {
namespace {

struct Feature {
  const FeatureWord* word;
  std::uint32_t mask;
};

std::optional<std::uint32_t> number(std::string_view text, int base) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// "0x" and hexadecimal digits.
std::optional<std::uint32_t> hexadecimal(std::string_view text) {
  return text.starts_with("0x") ? number(text.substr(2), 16) : std::nullopt;
}

/// A feature's name, or "1.ecx:16" for a bit that has none.
Result<Feature> parse_feature(std::string_view name) {
  if (const auto known = find_feature(name)) return Feature{find_word(known->word), 1U << known->bit};
  const std::size_t colon = name.find(':');
  if (colon != std::string_view::npos) {
    const FeatureWord* word = find_word(name.substr(0, colon));
    const auto bit = number(name.substr(colon + 1), 10);
    if (word != nullptr && bit && *bit < 32) return Feature{word, 1U << *bit};
  }
  return Error(Errc::kInvalidArgument, fmt::format("there is no CPU feature \"{}\"; \"fvmmctl cpu-template show host\" "
                                                   "lists what this host has",
                                                   name));
}

/// What may remain of one word: names with a space between, or a mask.
Result<Feature> parse_features(const v1::CpuFeatures& only) {
  const FeatureWord* word = find_word(only.word());
  if (word == nullptr) {
    std::string known;
    for (const FeatureWord& one : feature_words()) known += fmt::format("{}{}", known.empty() ? "" : ", ", one.name);
    return Error(Errc::kInvalidArgument,
                 fmt::format("there is no feature word \"{}\"; there are {}", only.word(), known));
  }
  if (const auto mask = hexadecimal(only.features())) return Feature{word, *mask};
  Feature all{word, 0};
  std::string_view rest = only.features();
  while (!rest.empty()) {
    const std::string_view name = rest.substr(0, rest.find(' '));
    rest.remove_prefix(std::min(name.size() + 1, rest.size()));
    if (name.empty()) continue;
    const Feature one = FVMM_TRY(parse_feature(name), "word " + only.word());
    if (one.word != word) {
      return Error(Errc::kInvalidArgument,
                   fmt::format("feature \"{}\" is of word {}, not {}", name, one.word->name, word->name));
    }
    all.mask |= one.mask;
  }
  return all;
}

struct Leaf {
  std::uint32_t function;
  std::optional<std::uint32_t> index;  // none: all
};

/// "0xa", "0x7/1".
Result<Leaf> parse_leaf(std::string_view text) {
  const std::size_t slash = text.find('/');
  const auto function = hexadecimal(text.substr(0, slash));
  std::optional<std::uint32_t> index;
  if (slash != std::string_view::npos) index = number(text.substr(slash + 1), 10);
  // Without leaf 0 and 1 there is no CPU, without KVM's no clock.
  const bool needed = function && !index && (*function <= 1 || *function == 0x40000000 || *function == 0x80000000);
  if (!function || needed || (slash != std::string_view::npos && !index)) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("\"{}\" is no CPUID leaf that can be dropped, as \"0xa\" or \"0x7/1\"", text));
  }
  return Leaf{*function, index};
}

Result<std::uint32_t> parse_last(std::string_view key, std::string_view text, std::uint32_t least, std::uint32_t most) {
  if (text.empty()) return most;
  const auto last = hexadecimal(text);
  if (last && *last >= least && *last <= most) return *last;
  return Error(Errc::kInvalidArgument,
               fmt::format("{} is \"{}\", no leaf from {:#x} to {:#x}", key, text, least, most));
}

struct Last {
  std::uint32_t basic, extended;
};

Result<Last> parse_last(const v1::CpuTemplate& cpu) {
  return Last{FVMM_TRY(parse_last("max_leaf", cpu.max_leaf(), 1, 0x3FFFFFFF)),
              FVMM_TRY(parse_last("max_extended_leaf", cpu.max_extended_leaf(), 0x80000001, 0xFFFFFFFF))};
}

// A leaf 0x40000000 and up is KVM's own.
void drop_leaves(CpuidTable& table, const Last& last, const std::vector<Leaf>& dropped) {
  std::erase_if(table, [&](const kvm_cpuid_entry2& entry) {
    const bool extended = entry.function >= 0x80000000;
    if (extended ? entry.function > last.extended : entry.function < 0x40000000 && entry.function > last.basic)
      return true;
    return std::ranges::any_of(dropped, [&](const Leaf& leaf) {
      return leaf.function == entry.function && (!leaf.index || *leaf.index == entry.index);
    });
  });
  if (auto* entry = find_entry(table, 0)) entry->eax = std::min(entry->eax, last.basic);
  if (auto* entry = find_entry(table, 0x80000000)) entry->eax = std::min(entry->eax, last.extended);
  const bool indices_of_7 =
      std::ranges::any_of(dropped, [](const Leaf& leaf) { return leaf.function == 7 && leaf.index; });
  if (auto* entry = find_entry(table, 7); entry != nullptr && indices_of_7) {
    std::uint32_t most = 0;
    for (const kvm_cpuid_entry2& one : table) most = one.function == 7 ? std::max(most, one.index) : most;
    entry->eax = std::min(entry->eax, most);
  }
}

// Leaf 0xD for the components that are left (Intel SDM vol. 1, 13.2): their sub-leaves, and the size of the whole.
void fit_extended_state(CpuidTable& table) {
  constexpr std::uint32_t kXsaves = 1U << 3;
  constexpr std::uint32_t kLegacyAndHeader = 576;
  constexpr std::uint32_t kFirstOfOwnSize = 2;
  auto* main = find_entry(table, 0xD);
  if (main == nullptr) return;
  main->edx = 0;  // components 32 to 63: none is defined
  std::uint32_t components = main->eax;
  if (auto* more = find_entry(table, 0xD, 1)) {
    if ((more->eax & kXsaves) == 0) more->ecx = more->edx = 0;
    components |= more->ecx;
  }
  std::erase_if(table, [&](const kvm_cpuid_entry2& entry) {
    if (entry.function != 0xD || entry.index < kFirstOfOwnSize) return false;
    return entry.index > 31 || (components >> entry.index & 1) == 0;
  });
  main = find_entry(table, 0xD);
  std::uint32_t bytes = kLegacyAndHeader;
  for (const kvm_cpuid_entry2& entry : table) {
    const bool user = entry.function == 0xD && entry.index >= kFirstOfOwnSize && (main->eax >> entry.index & 1) != 0;
    if (user) bytes = std::max(bytes, entry.ebx + entry.eax);
  }
  main->ebx = main->ecx = bytes;
}

std::uint32_t bits_of(const CpuidTable& table, std::string_view word) {
  return word_bits(table, *find_word(word));
}

}  // namespace

Status check_cpu_template(const v1::CpuTemplate& cpu) {
  if (cpu.version() != kCpuTemplateVersion) {
    return Error(Errc::kInvalidArgument, fmt::format("it has version {}, this build knows {}: \"version\": {}",
                                                     cpu.version(), kCpuTemplateVersion, kCpuTemplateVersion));
  }
  for (const v1::CpuFeatures& only : cpu.only()) FVMM_TRY(parse_features(only), "only");
  for (const std::string& name : cpu.without()) FVMM_TRY(parse_feature(name), "without");
  for (const std::string& name : cpu.require()) {
    FVMM_TRY(parse_feature(name), "require");
    if (std::ranges::find(cpu.without(), name) == cpu.without().end()) continue;
    return Error(Errc::kInvalidArgument, fmt::format("feature {} is both in \"require\" and in \"without\"", name));
  }
  for (const std::string& name : cpu.give()) {
    const Feature feature = FVMM_TRY(parse_feature(name), "give");
    if ((feature.mask & feature.word->ours) == 0) {
      return Error(Errc::kInvalidArgument,
                   fmt::format("feature {} is the CPU's own: it cannot be given, only required", name));
    }
  }
  for (const std::string& leaf : cpu.drop_leaves()) FVMM_TRY(parse_leaf(leaf), "drop_leaves");
  FVMM_TRY(parse_last(cpu));
  return {};
}

Result<v1::CpuTemplate> parse_cpu_template(std::string_view name, std::string_view json) {
  const auto context = [&] { return fmt::format("CPU template {}", name); };
  if (json.size() > kCpuTemplateBytesMax) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("{} has {} bytes, more than {}", context(), json.size(), kCpuTemplateBytesMax));
  }
  v1::CpuTemplate cpu;
  const auto parsed = google::protobuf::util::JsonStringToMessage(std::string(json), &cpu);
  if (!parsed.ok())
    return Error(Errc::kInvalidArgument, fmt::format("{}: {}", context(), std::string(parsed.message())));
  if (!cpu.name().empty() && cpu.name() != name) {
    return Error(Errc::kInvalidArgument, fmt::format("{} calls itself {}", context(), cpu.name()));
  }
  cpu.set_name(std::string(name));
  FVMM_TRY(check_cpu_template(cpu), context());
  return cpu;
}

Status apply_cpu_template(const v1::CpuTemplate& cpu, CpuidTable& table) {
  const std::uint32_t state = bits_of(table, "0xd.eax"), saving = bits_of(table, "0xd.1.eax");
  for (const v1::CpuFeatures& only : cpu.only()) {
    const Feature kept = FVMM_TRY(parse_features(only));
    set_word_bits(table, *kept.word, word_bits(table, *kept.word) & kept.mask);
  }
  for (const std::string& name : cpu.without()) {
    const Feature gone = FVMM_TRY(parse_feature(name));
    set_word_bits(table, *gone.word, word_bits(table, *gone.word) & ~gone.mask);
  }
  for (const std::string& name : cpu.give()) {
    const Feature given = FVMM_TRY(parse_feature(name));
    set_word_bits(table, *given.word, word_bits(table, *given.word) | given.mask);
  }
  std::vector<Leaf> dropped;
  for (const std::string& leaf : cpu.drop_leaves()) dropped.push_back(FVMM_TRY(parse_leaf(leaf)));
  drop_leaves(table, FVMM_TRY(parse_last(cpu)), dropped);
  if (state != bits_of(table, "0xd.eax") || saving != bits_of(table, "0xd.1.eax")) fit_extended_state(table);
  for (const std::string& name : cpu.require()) {
    const Feature needed = FVMM_TRY(parse_feature(name));
    if ((word_bits(table, *needed.word) & needed.mask) != 0) continue;
    return Error(Errc::kFailedPrecondition,
                 fmt::format("CPU template {} requires {}, which this host's CPU (or its KVM) lacks: "
                             "choose another template or host",
                             cpu.name(), name));
  }
  return {};
}

std::vector<v1::CpuFeatures> name_features(const CpuidTable& table) {
  std::vector<v1::CpuFeatures> out;
  for (const FeatureWord& word : feature_words()) {
    v1::CpuFeatures features;
    features.set_word(std::string(word.name));
    for (std::uint32_t rest = word_bits(table, word); rest != 0; rest &= rest - 1) {
      const auto bit = static_cast<unsigned>(std::countr_zero(rest));
      const std::string_view name = feature_name(word.name, bit);
      std::string& text = *features.mutable_features();
      text += fmt::format("{}{}", text.empty() ? "" : " ", name.empty() ? fmt::format("{}:{}", word.name, bit) : name);
    }
    out.push_back(std::move(features));
  }
  return out;
}

}  // namespace fvmm::vmm
