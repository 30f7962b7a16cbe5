// template create/list/show/push/import/rm/verify
#include <fmt/format.h>

#include <memory>
#include <ostream>

#include "base/id.h"
#include "base/units.h"
#include "cli/cli11.h"
#include "cli/commands.h"
#include "cli/json.h"
#include "cli/progress.h"

namespace fvmm::cli {
namespace {

void print_template(std::ostream& out, const v1::TemplateInfo& info) {
  const auto id = Id::from_bytes(info.ref().id());
  std::vector<std::vector<std::string>> rows{
      {"name", info.ref().name()},
      {"id", id ? id->hex() : "-"},
      {"generation", std::to_string(info.ref().generation())},
      {"digest", to_hex({reinterpret_cast<const std::byte*>(info.ref().digest().data()), info.ref().digest().size()})},
      {"memory", format_bytes(info.ref().memory_bytes())},
      {"stored", format_bytes(info.stored_bytes())},
      {"pages", std::to_string(info.pages())},
      {"pins", std::to_string(info.pins())},
      {"created", info.created()},
      {"kind", info.kind()},
      {"template memory", info.template_memory()}};
  for (const v1::TemplateDisk& disk : info.disks()) {
    if (disk.disk() >= static_cast<std::uint32_t>(info.config().disks_size()))
      continue;  // of a daemon that is not ours
    rows.push_back(
        {fmt::format("disk {}", disk.disk()),
         fmt::format("{} in {} layer(s)", info.config().disks(static_cast<int>(disk.disk())).path(), disk.layers())});
  }
  if (!info.parent().empty()) {
    rows.push_back({"parent", info.parent()});
    rows.push_back({"chain", fmt::format("{} below", info.chain())});
    rows.push_back({"runs", std::to_string(info.runs())});
    rows.push_back(
        {"mappable", info.mappable() ? "yes" : "no: the shortest runs are read into memory until it is folded"});
    if (!info.folding().empty()) rows.push_back({"folding", info.folding()});
  }
  if (!info.engine().empty()) {
    rows.push_back({"engine", fmt::format("{}: {}", info.engine(), info.why_engine())});
    rows.push_back({"rounds", fmt::format("{}, then {} pages in the pause", info.rounds(), info.pause_pages())});
  }
  if (info.duration_ms() > 0) {
    rows.push_back({"pause", fmt::format("{:.2f} ms", info.pause_ms())});
    rows.push_back({"duration", fmt::format("{:.2f} ms", info.duration_ms())});
  }
  out << align(rows);
}

std::string template_table(const v1::TemplateList& list) {
  std::vector<std::vector<std::string>> rows{
      {"NAME", "GENERATION", "KIND", "TEMPLATE MEMORY", "MEMORY", "STORED", "PAGES", "PINS", "CREATED"}};
  for (const v1::TemplateInfo& info : list.templates()) {
    rows.push_back({info.ref().name(), std::to_string(info.ref().generation()), info.kind(), info.template_memory(),
                    format_bytes(info.ref().memory_bytes()), format_bytes(info.stored_bytes()),
                    std::to_string(info.pages()), std::to_string(info.pins()), info.created()});
  }
  return align(rows);
}

struct Options {
  std::string name, vm, engine, to, directory, memory, test_hook;
  bool link = false;
};

int push(Session& session, const Options& options) {
  v1::PushRequest request;
  request.set_name(options.name);
  request.set_to(options.to);
  const auto timeout = session.timeout(kLongCallTimeout);
  if (!timeout) return session.fail(Error(timeout.error().code(), "--timeout: " + timeout.error().message()), kUsage);
  request.set_timeout_ms(to_timeout_ms(*timeout));
  Progress progress(session.streams());
  v1::PushEvent result;
  const Status status = session.stream(
      "fvmm.v1.Templates/Push", request,
      [&](const std::string& bytes, bool last) {
        v1::PushEvent event;
        if (!event.ParseFromString(bytes)) return false;
        if (last) {
          result = event;
        } else {
          progress.show(fmt::format("push {}: {} of {}", options.name, format_bytes(event.bytes_done()),
                                    format_bytes(event.bytes_total())),
                        event.bytes_done(), event.bytes_total());
        }
        return true;
      },
      kLongCallTimeout);
  progress.end();
  if (!status) return session.fail(status.error());
  if (session.json()) {
    session.out() << to_json(result) << '\n';
  } else if (result.already_there()) {
    session.out() << options.name << ": " << options.to << " has it already\n";
  } else {
    session.out() << fmt::format("{}: {} sent to {} in {:.1f} ms\n", options.name, format_bytes(result.bytes_sent()),
                                 options.to, result.duration_ms());
  }
  return kDone;
}

int verify(Session& session, const std::string& name) {
  v1::TemplateName request;
  request.set_name(name);
  v1::VerifyReport report;
  const int code = session.call("fvmm.v1.Templates/Verify", request, report, kLongCallTimeout, [&] {
    session.out() << fmt::format("{}: {}, {} pages checked, {} bad\n", name, report.good() ? "good" : "BAD",
                                 report.pages_checked(), report.pages_bad());
  });
  if (code != kDone || report.good()) return code;
  session.err() << "fvmmctl: template " << name << " is damaged: " << report.detail() << '\n';
  return kFailed;
}

void add_create(CLI::App& parent, Chosen& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *parent.add_subcommand("create", "Make a template of a VM");
  command.add_option("NAME", options->name, "Name of the template")->required();
  command.add_option("--from", options->vm, "VM")->required();
  command.add_option("--engine", options->engine, "How memory is captured")
      ->check(CLI::IsMember({"auto", "cow", "chase", "stop"}));
  command.add_option("--template-memory", options->memory, "Where clones map it from: the disk's files, or RAM")
      ->check(CLI::IsMember({"stored", "resident"}));
  command.add_option("--test-hook", options->test_hook)->group("");
  command.callback([&chosen, options] {
    chosen = [options](Session& session) {
      v1::CreateTemplateRequest request;
      request.set_name(options->name);
      request.set_vm(options->vm);
      request.set_engine(options->engine);
      request.set_template_memory(options->memory);
      request.set_test_hook(options->test_hook);
      v1::TemplateInfo answer;
      return session.call("fvmm.v1.Templates/Create", request, answer, kLongCallTimeout,
                          [&] { print_template(session.out(), answer); });
    };
  });
}

void add_list_and_show(CLI::App& parent, Chosen& chosen) {
  parent.add_subcommand("list", "All templates of this host")->callback([&chosen] {
    chosen = [](Session& session) {
      v1::TemplateList answer;
      return session.call("fvmm.v1.Templates/List", v1::Empty(), answer, kCallTimeout,
                          [&] { session.out() << template_table(answer); });
    };
  });
  auto name = std::make_shared<std::string>();
  CLI::App& show = *parent.add_subcommand("show", "Everything about one template");
  show.add_option("NAME", *name, "Template")->required();
  show.callback([&chosen, name] {
    chosen = [name](Session& session) {
      v1::TemplateName request;
      request.set_name(*name);
      v1::TemplateInfo answer;
      return session.call("fvmm.v1.Templates/Show", request, answer, kCallTimeout,
                          [&] { print_template(session.out(), answer); });
    };
  });
}

void add_push_and_import(CLI::App& parent, Chosen& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *parent.add_subcommand("push", "Send a template to a peer's store");
  command.add_option("NAME", options->name, "Template")->required();
  command.add_option("--to", options->to, "Peer, HOST:PORT")->required();
  command.callback([&chosen, options] { chosen = [options](Session& session) { return push(session, *options); }; });
  CLI::App& take_over = *parent.add_subcommand("import", "Take a template from a store's directory on this host");
  take_over.add_option("DIR", options->directory, "The template's directory")->required();
  take_over.add_flag("--link", options->link, "Share the files by verified hard links instead of copying them");
  take_over.callback([&chosen, options] {
    chosen = [options](Session& session) {
      v1::ImportRequest request;
      request.set_directory(absolute_path(options->directory));
      request.set_link(options->link);
      v1::TemplateInfo answer;
      return session.call("fvmm.v1.Templates/Import", request, answer, kLongCallTimeout,
                          [&] { print_template(session.out(), answer); });
    };
  });
}

/// A command that takes a template's name and shows the template.
void add_change(CLI::App& parent, Chosen& chosen, const char* word, const char* help, const char* method) {
  auto name = std::make_shared<std::string>();
  CLI::App& command = *parent.add_subcommand(word, help);
  command.add_option("NAME", *name, "Template")->required();
  command.callback([&chosen, name, method] {
    chosen = [name, method](Session& session) {
      v1::TemplateName request;
      request.set_name(*name);
      v1::TemplateInfo answer;
      return session.call(method, request, answer, kLongCallTimeout, [&] { print_template(session.out(), answer); });
    };
  });
}

void add_fold_and_gc(CLI::App& parent, Chosen& chosen) {
  add_change(parent, chosen, "fold", "Make a delta whole, so that it needs no parent; its identity stays",
             "fvmm.v1.Templates/Fold");
  parent.add_subcommand("gc", "Remove generations (NAME@G) that nothing uses or descends from")->callback([&chosen] {
    chosen = [](Session& session) {
      v1::GcReport answer;
      return session.call("fvmm.v1.Templates/Gc", v1::Empty(), answer, kLongCallTimeout, [&] {
        for (const std::string& removed : answer.removed()) session.out() << removed << ": removed\n";
        session.out() << fmt::format("{} generations removed, {} freed\n", answer.removed_size(),
                                     format_bytes(answer.bytes_freed()));
      });
    };
  });
}

void add_remove_and_verify(CLI::App& parent, Chosen& chosen) {
  auto name = std::make_shared<std::string>();
  CLI::App& remove = *parent.add_subcommand("rm", "Remove a template that nothing uses");
  remove.add_option("NAME", *name, "Template")->required();
  remove.callback([&chosen, name] {
    chosen = [name](Session& session) {
      v1::TemplateName request;
      request.set_name(*name);
      v1::Empty answer;
      return session.call("fvmm.v1.Templates/Remove", request, answer, kCallTimeout,
                          [&] { session.out() << *name << ": removed\n"; });
    };
  });
  CLI::App& check = *parent.add_subcommand("verify", "Read a template and compare every checksum");
  check.add_option("NAME", *name, "Template")->required();
  check.callback([&chosen, name] { chosen = [name](Session& session) { return verify(session, *name); }; });
}

}  // namespace

void add_template_commands(CLI::App& app, Chosen& chosen) {
  CLI::App& parent = *app.add_subcommand("template", "Immutable images of VMs");
  parent.require_subcommand(1);
  add_create(parent, chosen);
  add_list_and_show(parent, chosen);
  add_push_and_import(parent, chosen);
  add_fold_and_gc(parent, chosen);
  add_change(parent, chosen, "load", "Make a template resident: checked, and in RAM (tmpfs)", "fvmm.v1.Templates/Load");
  add_change(parent, chosen, "unload", "Make a resident template stored only, again", "fvmm.v1.Templates/Unload");
  add_remove_and_verify(parent, chosen);
}

}  // namespace fvmm::cli
