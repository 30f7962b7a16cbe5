#include "cli/json.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/id.h"
#include "proto/control.pb.h"
#include "proto/worker.pb.h"

namespace fvmm::cli {
namespace {

TEST(CliJson, VmHasThisShape) {  // golden: scripts rely on it
  v1::VmInfo vm;
  vm.mutable_config()->set_id(Id::parse("000102030405060708090a0b0c0d0e0f")->raw());
  vm.mutable_config()->set_name("web1");
  vm.mutable_config()->set_memory_bytes(8589934592);
  vm.set_state(v1::VM_RUNNING);
  vm.set_fencing_token(18446744073709551615ULL);
  vm.set_start_ms(1.25);
  EXPECT_EQ(
      to_json(vm),
      R"({"config":{"id":"000102030405060708090a0b0c0d0e0f","name":"web1","memory_bytes":8589934592,"vcpus":0,)"
      R"("kernel":"","initrd":"","cmdline":"","cpu_template":"","tracking":"","acpi":false,)"
      R"("generation_id":"","virtio":[],"disks":[],"nets":[]},"state":"running","detail":"","worker_pid":0,)"
      R"("fencing_token":18446744073709551615,"moved_to":"","console_path":"","serial_bytes":0,"delta_pages":0,)"
      R"("start_ms":1.25,"delta_unknown":false,"completed_instructions":0,"virtio_console_path":"","seccomp":"","nets":[]})");
}

TEST(CliJson, ListsAreThereWhenEmptyAndKeepTheirOrder) {
  EXPECT_EQ(to_json(v1::VmList()), R"({"vms":[]})");
  v1::HostInfo host;
  host.add_cpu_templates("host");
  host.add_cpu_templates("pvm");
  EXPECT_NE(to_json(host).find(R"("cpu_templates":["host","pvm"])"), std::string::npos);
  EXPECT_NE(to_json(host).find(R"("pvm":false)"), std::string::npos);
}

TEST(CliJson, EveryStateIsALowerCaseWord) {
  EXPECT_EQ(enum_word("VM_STATE_NONE"), "none");
  EXPECT_EQ(enum_word("VM_RUNNING"), "running");
  EXPECT_EQ(enum_word("VM_UNSETTLED"), "unsettled");
  EXPECT_EQ(enum_word("FLIP"), "flip");
  for (int state = 0; state <= v1::VmState_MAX; ++state) {
    for (const char c : enum_word(v1::VmState_Name(static_cast<v1::VmState>(state)))) EXPECT_TRUE(c >= 'a' && c <= 'z');
  }
}

TEST(CliJson, EnumValueOfALaterVersionIsItsNumber) {
  v1::VmInfo vm;
  vm.set_state(static_cast<v1::VmState>(99));
  EXPECT_NE(to_json(vm).find(R"("state":99)"), std::string::npos);
}

TEST(CliJson, StringsAreEscapedAndAlwaysUtf8) {
  EXPECT_EQ(json_string("a\"b\\c\n\t\r"), R"("a\"b\\c\n\t\r")");
  EXPECT_EQ(json_string(std::string_view("\x01\x1f\x7f\0", 4)), R"("\u0001\u001f\u007f\u0000")");
  EXPECT_EQ(json_string("caf\xc3\xa9"), "\"caf\xc3\xa9\"");
  EXPECT_EQ(json_string("\xff"), R"("?")");
}

TEST(CliJson, NumbersThatJsonCannotSayAreNull) {
  EXPECT_EQ(json_number(0), "0");
  EXPECT_EQ(json_number(0.1), "0.1");
  EXPECT_EQ(json_number(-3.5), "-3.5");
  EXPECT_EQ(json_number(std::numeric_limits<double>::quiet_NaN()), "null");
  EXPECT_EQ(json_number(std::numeric_limits<double>::infinity()), "null");
}

TEST(CliJson, NegativeNumbersAndBooleansArePlain) {
  v1::WorkerInfo info;
  info.set_pid(-1);
  EXPECT_NE(to_json(info).find(R"("pid":-1)"), std::string::npos);
  v1::WorkerSettleRequest settle;
  settle.set_resume(true);
  EXPECT_EQ(to_json(settle), R"({"resume":true})");
}

}  // namespace
}  // namespace fvmm::cli
