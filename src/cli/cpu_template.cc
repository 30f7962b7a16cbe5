// cpu-template list, show
#include <fmt/format.h>

#include <memory>
#include <ostream>

#include "cli/cli11.h"
#include "cli/commands.h"

namespace fvmm::cli {
namespace {

std::string fitness(const v1::CpuTemplateInfo& info) {
  if (!info.refused().empty()) return "no: " + info.refused();
  return info.by_default() ? "yes, by default" : "yes";
}

std::string cpu_template_table(const v1::CpuTemplateList& list) {
  std::vector<std::vector<std::string>> rows{{"NAME", "FROM", "DESCRIPTION", "USABLE HERE"}};
  for (const v1::CpuTemplateInfo& info : list.templates()) {
    rows.push_back({info.template_().name(), info.file().empty() ? "built in" : info.file(),
                    info.template_().description(), fitness(info)});
  }
  return align(rows);
}

std::string joined(const google::protobuf::RepeatedPtrField<std::string>& names) {
  std::string out;
  for (const std::string& name : names) out += (out.empty() ? "" : " ") + name;
  return out;
}

void print_cpu_template(std::ostream& out, const v1::CpuTemplateInfo& info) {
  const v1::CpuTemplate& cpu = info.template_();
  std::vector<std::vector<std::string>> rows{{"name", cpu.name()},
                                             {"from", info.file().empty() ? "built in" : info.file()},
                                             {"description", cpu.description()},
                                             {"usable here", fitness(info)}};
  for (const v1::CpuFeatures& only : cpu.only()) rows.push_back({"only, of " + only.word(), only.features()});
  const std::pair<const char*, std::string> lists[] = {
      {"without", joined(cpu.without())}, {"require", joined(cpu.require())},
      {"give", joined(cpu.give())},       {"drop leaves", joined(cpu.drop_leaves())},
      {"last leaf", cpu.max_leaf()},      {"last extended leaf", cpu.max_extended_leaf()}};
  for (const auto& [title, text] : lists) {
    if (!text.empty()) rows.push_back({title, text});
  }
  for (const v1::CpuFeatures& word : info.features()) rows.push_back({"gives here, " + word.word(), word.features()});
  out << align(rows);
}

}  // namespace

void add_cpu_template_commands(CLI::App& app, Chosen& chosen) {
  CLI::App& noun = *app.add_subcommand("cpu-template", "What guests get of this host's CPU");
  noun.require_subcommand(1);
  noun.add_subcommand("list", "Those built in, and the files of this host")->callback([&chosen] {
    chosen = [](Session& session) {
      v1::CpuTemplateList answer;
      return session.call("fvmm.v1.CpuTemplates/List", v1::Empty(), answer, kCallTimeout,
                          [&] { session.out() << cpu_template_table(answer); });
    };
  });
  auto name = std::make_shared<std::string>();
  CLI::App& show = *noun.add_subcommand("show", "What one says, and the features that a guest gets by it here");
  show.add_option("NAME", *name, "CPU template")->required();
  show.callback([&chosen, name] {
    chosen = [name](Session& session) {
      v1::CpuTemplateName request;
      request.set_name(*name);
      v1::CpuTemplateInfo answer;
      return session.call("fvmm.v1.CpuTemplates/Show", request, answer, kCallTimeout,
                          [&] { print_cpu_template(session.out(), answer); });
    };
  });
}

}  // namespace fvmm::cli
