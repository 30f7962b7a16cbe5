// ACPI tables and the VM generation id between two real daemons: a clone has another id, a VM that moves keeps its own.
#include <fmt/format.h>

#include "support/daemons.h"

namespace fvmm::test {
namespace {

class DaemonAcpi : public TwoHosts {
 protected:
  Ctl create(std::vector<std::string> more, const std::string& options = "tick=20") {
    std::vector<std::string> words{"vm",       "create",          "web",       "--memory", "64M",
                                   "--kernel", guest("acpi.elf"), "--cmdline", options,    "--start"};
    words.insert(words.end(), more.begin(), more.end());
    return a_->ctl(words);
  }
  /// What the guest says of an id that fvmmctl shows in hex.
  static std::string as_read(const std::string& id) {
    std::string said;
    for (const std::size_t half : {0, 8}) {
      std::uint64_t word = 0;
      for (std::size_t byte = half + 8; byte-- > half;)
        word = word << 8 | std::stoul(id.substr(2 * byte, 2), nullptr, 16);
      said += fmt::format("{}{:#x}", said.empty() ? "" : "-", word);
    }
    return said;
  }
  /// The id that the guest reads now, once it has said so a few times more.
  std::string generation(Host& host, const std::string& vm) {
    const std::size_t before = host.serial(vm).size();
    EXPECT_TRUE(wait_until([&] {
      const std::string now = host.serial(vm);
      return now.size() > before && now.find("GENERATION ", before + 200) != std::string::npos;
    })) << host.serial(vm);
    const std::string log = host.serial(vm);
    const std::size_t last = log.rfind("\nGENERATION ", log.rfind('\n') - 1);
    const std::size_t at = last + std::string_view("\nGENERATION ").size();
    return log.substr(at, log.find(' ', at) - at);
  }
};

TEST_F(DaemonAcpi, ACloneHasAnotherGenerationIdAndAMigratedVmItsOwn) {
  const Ctl created = create({"--acpi", "--rng", "--vcpus", "2"});
  ASSERT_EQ(created.code, 0) << created;
  ASSERT_TRUE(a_->serial_contains("web", "ACPI cpus=2")) << a_->serial("web");
  const std::string own = generation(*a_, "web");
  ASSERT_TRUE(share_template(*a_, *b_, "web", "base"));
  EXPECT_EQ(generation(*a_, "web"), own) << "the original goes on";

  const Ctl cloned = a_->ctl({"vm", "clone", "copy", "--template", "base", "--count", "2", "--start"});
  ASSERT_EQ(cloned.code, 0) << cloned;
  const std::set<std::string> ids{own, generation(*a_, "copy-1"), generation(*a_, "copy-2")};
  EXPECT_EQ(ids.size(), 3U);

  for (const char* mode : {"suspend", "live"}) {
    Host& from = mode == std::string("suspend") ? *a_ : *b_;
    Host& to = mode == std::string("suspend") ? *b_ : *a_;
    const Ctl moved = from.ctl({"migrate", "web", "--to", to.listen(), "--mode", mode});
    ASSERT_EQ(moved.code, 0) << moved;
    EXPECT_EQ(generation(to, "web"), own) << mode;
  }
}

// The template holds the original's id, and the VMM alone has written the clone's: a move leaves out what is not
// marked. The guest must not have looked before it moves, for KVM may take a first look at a page for a write; so it
// sleeps.
TEST_F(DaemonAcpi, ACloneThatMovesAtOnceFindsTheIdThatItWasGiven) {
  const Ctl created = create({"--acpi"}, "tick=2000");
  ASSERT_EQ(created.code, 0) << created;
  ASSERT_TRUE(a_->serial_contains("web", "GENERATION ")) << a_->serial("web");
  ASSERT_TRUE(share_template(*a_, *b_, "web", "base"));
  for (const std::string mode : {"suspend", "live"}) {
    const std::string clone = "copy-" + mode;
    const Ctl cloned = a_->ctl({"vm", "clone", clone, "--template", "base", "--start"});
    ASSERT_EQ(cloned.code, 0) << cloned;
    const Ctl moved = a_->ctl({"migrate", clone, "--to", b_->listen(), "--mode", mode});
    ASSERT_EQ(moved.code, 0) << moved;
    const auto config = b_->vm(clone).at("config").as_object();
    EXPECT_TRUE(b_->serial_contains(clone, "GENERATION " + as_read(Host::text(config, "generation_id")) + " "))
        << mode << ": it was given " << Host::text(config, "generation_id") << " and reads " << b_->serial(clone);
  }
}

TEST_F(DaemonAcpi, WithoutTheOptionThereAreNoTables) {
  const Ctl created = create({});
  ASSERT_EQ(created.code, 0) << created;
  EXPECT_TRUE(a_->serial_contains("web", "FATAL no ACPI tables")) << a_->serial("web");
}

}  // namespace
}  // namespace fvmm::test
