// A person at a guest's serial console.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "support/daemons.h"

namespace fvmm::test {

/// `fvmmctl vm console` with a pipe as its keyboard.
class Console {
 public:
  Console(Host& host, const std::string& vm) : output_(host.directory() / ("console-" + vm + ".out")) {
    int ends[2];
    FVMM_CHECK(::pipe2(ends, O_CLOEXEC) == 0, "pipe2");
    const UniqueFd keyboard(ends[0]);
    keys_.reset(ends[1]);
    process_ = std::make_unique<Process>(std::vector<std::string>{std::string(FVMM_BIN_DIR) + "/fvmmctl", "--socket",
                                                                  host.socket(), "vm", "console", vm},
                                         output_, host.directory() / "console.err", keyboard.get());
  }
  void type(std::string_view text) {
    EXPECT_EQ(::write(keys_.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  bool shows(const std::string& text) {
    return wait_until([&] { return read_text(output_).find(text) != std::string::npos; });
  }
  std::optional<int> leave() {
    keys_.reset();
    return process_->wait(std::chrono::seconds(30));
  }

 private:
  std::filesystem::path output_;
  UniqueFd keys_;
  std::unique_ptr<Process> process_;
};

}  // namespace fvmm::test
