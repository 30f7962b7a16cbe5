// Two hosts, a network and a VM that migrates: one seed is one history. What is real: SourceSession, DestinationSession
// and all they are made of. What is simulated: time, threads, connections, disks, machines, and what fvmmd does around.
//
// Deterministic: everything; the same seed and code give the same history, whatever else the machine does. One
// simulated thread runs at a time, waits end when virtual time comes to them, randomness and ids come from the seed.
#pragma once

#include <spdlog/spdlog.h>

#include <functional>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "migration/transport.h"
#include "net/frame.h"
#include "support/sim_host.h"
#include "support/sim_net.h"
#include "support/sim_parts.h"
#include "support/sim_plan.h"

namespace fvmm::testing {

/// Lives on the simulation's first thread.
class SimWorld final : private migration::Transport {
 public:
  SimWorld(std::uint64_t seed, SimPlan plan);
  ~SimWorld() override;
  SimWorld(const SimWorld&) = delete;
  SimWorld& operator=(const SimWorld&) = delete;
  SimWorld(SimWorld&&) = delete;
  SimWorld& operator=(SimWorld&&) = delete;

  /// The migration, and afterwards everybody's way out of what it left.
  void run();
  /// The first broken promise; empty: none.
  [[nodiscard]] const std::string& violation() const { return violation_; }
  [[nodiscard]] const std::string& result() const { return result_; }  // "killed" when the source's worker died
  [[nodiscard]] const std::string& reason() const { return reason_; }  // of a result other than completed

 private:
  using S = migration::SourceState;
  // sim_world_faults.h
  void alive();
  void tick();
  void die(SimHost& host, bool power, SimTime back_after);
  void boot_again(SimHost& host);
  Status on_step(SimHost& host, std::string_view name);
  void trace(int host, std::string_view what);
  // sim_world_hosts.h
  Result<std::unique_ptr<net::Stream>> connect(const Deadline& deadline) override;
  void migrate();
  void close_departure();
  void serve(std::unique_ptr<net::Stream> stream);
  void migrate_in(std::unique_ptr<net::Stream> stream, const v1::PeerHello& hello);
  v1::SessionAnswer answer(const std::string& session);
  void told(SimWord word);
  std::unique_ptr<migration::Guest> make_guest(SimHost& host, const v1::VmConfig& config, const v1::TemplateRef& base,
                                               SimMachineFaults faults);
  // sim_world_checks.h
  void on_start(SimHost& host, SimMachine& machine);
  void check_moment();
  void check_end();
  [[nodiscard]] bool may_be_unknown() const;
  [[nodiscard]] bool refusal_is_durable() const;
  void way_out();
  SimWord ask(SimHost& host);
  bool settle(SimHost& host);
  void force();
  void expect(bool promise, const char* what);

  SimHost& host(int number) { return number == 1 ? source_ : destination_; }
  SimScheduler& world() { return *SimScheduler::current; }
  void spawn(int host, std::function<void()> body);
  void join();

  const std::uint64_t seed_;
  SimPlan plan_;
  SimHost source_{1};
  SimHost destination_{2};
  std::list<std::thread> threads_;
  SimLinks links_;
  std::shared_ptr<SimJournal> source_journal_;
  std::shared_ptr<SimJournal> destination_journal_;  // outlives its session
  std::string session_;
  bool connecting_to_source_ = false;
  bool healed_ = false;      // nothing goes wrong any more
  S seen_ = S::kConnecting;  // the source session's state when last looked at
  bool committed_ = false;   // the source may have said COMMIT
  bool dest_ran_ = false;
  bool told_refused_ = false;
  bool refusal_kept_ = false;              // and it was on the disk then
  std::array<std::uint64_t, 2> frozen_{};  // the source's registers, once paused for good
  std::string result_;
  std::string reason_;
  std::string violation_;
};

}  // namespace fvmm::testing

#include "support/sim_world_checks.h"  // IWYU pragma: export
#include "support/sim_world_faults.h"  // IWYU pragma: export
#include "support/sim_world_hosts.h"   // IWYU pragma: export
