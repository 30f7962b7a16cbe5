// Templates of a standing VM, and clones that map them privately.
#include <optional>

#include "support/guest_vm.h"
#include "support/stored_template.h"

namespace fvmm {
namespace {

constexpr std::uint64_t kBytes = 64 * kMiB;
constexpr const char* kWorkload = "seed=21 ws=4 rate=2000 beat=20";

/// Engine `stop`: everything written since the zero template, and the machine's state. The VM is paused.
Result<memory::TemplateInfo> take_template(vmm::Vm& vm, memory::DirtyTracker::Reader& since_zero,
                                           memory::TemplateStore& store, const std::string& name) {
  memory::TemplateStore::NewTemplate wanted;
  wanted.name = name;
  wanted.memory_bytes = kBytes;
  auto writer = FVMM_TRY(store.begin(wanted));
  const v1::MachineState state = FVMM_TRY(vm.save_state());
  FVMM_TRY(vm.dirty().harvest());
  for (const memory::PageRange& range : since_zero.pending().ranges(1024)) {
    FVMM_TRY(writer.add_pages(range.first, vm.memory().pages(range)));
  }
  FVMM_TRY(writer.set_machine_state(state));
  return writer.seal();
}

/// A VM on the template, paused where the template was taken.
Result<std::unique_ptr<vmm::Vm>> clone_of(const memory::OpenTemplate& base) {
  const v1::MachineState state = FVMM_TRY(base.machine_state());
  auto vm = FVMM_TRY(vmm::Vm::create({.memory_bytes = kBytes, .vcpus = 1}, [](const vmm::VcpuStop& stop) {
    ADD_FAILURE() << "clone stopped: " << stop.report;
  }));
  FVMM_TRY(vm->attach_devices({}));
  FVMM_TRY(vm->set_cpu(FVMM_TRY(vmm::unpack_cpuid(state.vcpus(0).cpuid()))));
  FVMM_TRY(vm->memory().map_private(base.memory_file()));
  FVMM_TRY(vm->load_state(state));
  return vm;
}

class Template : public ::testing::Test {
 protected:
  void SetUp() override {
    FVMM_NEEDS_KVM();
    store_.emplace(memory::TemplateStore::open(directory_.path() / "store").value());
    auto vm = test::boot_vm("workload.elf", kBytes, kWorkload);
    ASSERT_TRUE(vm.ok()) << vm.error().message();
    source_ = std::move(*vm);
    since_zero_ = source_->dirty().add_reader();  // boot() has written already, and its marks are still there
    ASSERT_TRUE(source_->resume().ok());
    test::wait_for_output(*source_, "HB n=2 ");
    ASSERT_TRUE(source_->pause().ok());
    const auto info = take_template(*source_, *since_zero_, *store_, "golden");
    ASSERT_TRUE(info.ok()) << info.error().message();
    base_.emplace(memory::OpenTemplate::open(info->directory).value());
  }
  void expect_template_unchanged() {
    const auto report = store_->verify("golden");
    ASSERT_TRUE(report.ok()) << report.error().message();
    EXPECT_EQ(report->pages_bad, 0U) << report->detail;
    EXPECT_EQ(report->detail, "");
  }

  testing::TempDir directory_;
  std::optional<memory::TemplateStore> store_;
  std::optional<memory::OpenTemplate> base_;
  std::unique_ptr<vmm::Vm> source_;
  std::unique_ptr<memory::DirtyTracker::Reader> since_zero_;
};

TEST_F(Template, CloneGoesOnAndTheFileStaysAsItIs) {
  auto clone = clone_of(*base_);
  ASSERT_TRUE(clone.ok()) << clone.error().message();
  ASSERT_TRUE((*clone)->resume().ok());
  EXPECT_EQ(test::verified(**clone), "");
  ASSERT_TRUE((*clone)->pause().ok());
  expect_template_unchanged();
}

TEST_F(Template, TheSourceGoesOnUponItsTemplate) {
  ASSERT_TRUE(source_->memory().map_private(base_->memory_file()).ok());
  ASSERT_TRUE(source_->dirty().harvest().ok());
  since_zero_->reset();
  ASSERT_TRUE(source_->resume().ok());
  EXPECT_EQ(test::verified(*source_), "");
  ASSERT_TRUE(source_->pause().ok());
  expect_template_unchanged();
}

TEST_F(Template, TwoClonesDivergeAndBothVerify) {
  auto first = clone_of(*base_);
  auto second = clone_of(*base_);
  ASSERT_TRUE(first.ok()) << first.error().message();
  ASSERT_TRUE(second.ok()) << second.error().message();
  ASSERT_TRUE((*first)->resume().ok());
  ASSERT_TRUE((*second)->resume().ok());
  EXPECT_EQ(test::verified(**first), "");
  EXPECT_EQ(test::verified(**second), "");
  ASSERT_TRUE((*first)->pause().ok());
  const std::string mark = "only in the first";
  ASSERT_TRUE((*first)->memory().write(0x50000, std::as_bytes(std::span(mark))).ok());
  std::string seen(mark.size(), '?');
  ASSERT_TRUE((*second)->memory().read(0x50000, std::as_writable_bytes(std::span(seen))).ok());
  EXPECT_EQ(seen, std::string(mark.size(), '\0'));
  expect_template_unchanged();
}

// What a clone has written is in its log: everything else still equals the template, byte by byte.
TEST_F(Template, TheDeltaOfACloneIsItsLog) {
  auto made = clone_of(*base_);
  ASSERT_TRUE(made.ok()) << made.error().message();
  vmm::Vm& clone = **made;
  const auto since_base = clone.dirty().add_reader();
  ASSERT_TRUE(clone.resume().ok());
  test::wait_for_next(clone, "HB ");
  test::wait_for_next(clone, "HB ");
  ASSERT_TRUE(clone.pause().ok());
  ASSERT_TRUE(clone.dirty().harvest().ok());
  std::array<std::byte, kPageBytes> original{};
  std::uint64_t different = 0;
  for (memory::PageIndex page = 0; page < clone.memory().layout().pages(); ++page) {
    ASSERT_TRUE(clone.memory().template_page(page, original).ok());
    const auto now = clone.memory().pages({page, 1});
    if (std::equal(now.begin(), now.end(), original.begin())) continue;
    ++different;
    EXPECT_TRUE(since_base->pending().test(page)) << "page " << page << " differs and was not logged";
  }
  EXPECT_GT(different, 0U);
  EXPECT_LT(since_base->pending().count(), clone.memory().layout().pages() / 4);
}

}  // namespace
}  // namespace fvmm
