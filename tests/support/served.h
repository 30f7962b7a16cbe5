// A control::Server on a socket in a directory of its own, running on a thread for the length of a test.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "base/clock.h"
#include "control/client.h"
#include "control/server.h"

namespace fvmm::test {

inline Deadline soon() {
  return Deadline::after(std::chrono::seconds(20));
}  // ends a hanging test, times nothing

/// A fresh directory, removed with all it holds.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "fvmm-XXXXXX").string();
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  TemporaryDirectory(TemporaryDirectory&&) = delete;
  TemporaryDirectory& operator=(TemporaryDirectory&&) = delete;
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

class Served {
 public:
  using Setup = std::function<void(control::Server&)>;
  using Allow = std::function<bool(const control::PeerCredentials&)>;

  explicit Served(const Setup& setup, Allow allow = {}) {
    control::Server::Options options;
    options.socket = socket();
    options.allow = std::move(allow);
    auto opened = control::Server::open(std::move(options));
    EXPECT_TRUE(opened.ok()) << (opened ? "" : opened.error().message());
    server_ = std::move(*opened);
    setup(*server_);
    thread_ = std::thread([this] { server_->run(); });
  }
  ~Served() { stop(); }
  Served(const Served&) = delete;
  Served& operator=(const Served&) = delete;
  Served(Served&&) = delete;
  Served& operator=(Served&&) = delete;

  void stop() {
    server_->stop();
    if (thread_.joinable()) thread_.join();
  }
  [[nodiscard]] std::filesystem::path socket() const { return directory_.path() / "fvmmd.sock"; }
  [[nodiscard]] const std::filesystem::path& directory() const { return directory_.path(); }
  [[nodiscard]] control::Server& server() { return *server_; }
  [[nodiscard]] std::unique_ptr<control::Client> client() const {
    auto connected = control::Client::connect(socket(), soon());
    EXPECT_TRUE(connected.ok()) << (connected ? "" : connected.error().message());
    return connected ? std::move(*connected) : nullptr;
  }

 private:
  TemporaryDirectory directory_;
  std::unique_ptr<control::Server> server_;
  std::thread thread_;
};

}  // namespace fvmm::test
