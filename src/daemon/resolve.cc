#include "daemon/resolve.h"

namespace fvmm::daemon {

PeerOutcome parse_outcome(const v1::SessionAnswer& answer) {
  if (answer.outcome() == "started") return PeerOutcome::kStarted;
  if (answer.outcome() == "refused") return PeerOutcome::kRefused;
  return PeerOutcome::kUnknown;
}

v1::SessionAnswer answer_of(const v1::SessionRecord& record) {
  v1::SessionAnswer answer;
  switch (record.outcome()) {
    case v1::OUTCOME_STARTED:
      answer.set_outcome("started");
      answer.set_detail("the destination runs it");
      return answer;
    case v1::OUTCOME_REFUSED:
    case v1::OUTCOME_ABORTED:
      answer.set_outcome("refused");
      answer.set_detail("the destination can never start it in this session");
      return answer;
    default:
      break;
  }
  answer.set_outcome("unknown");
  answer.set_detail(record.role() == v1::ROLE_MAY_START ? "it may have started, and its worker is gone"
                                                        : "the source waits for the answer itself");
  return answer;
}

Resolution resolve(const ResolveInput& input) {
  const bool destination = input.role == v1::ROLE_MAY_START;
  switch (input.peer) {
    case PeerOutcome::kStarted:  // the right to run is the destination's
      if (!destination) return Resolution::kMoved;
      return input.worker_alive ? Resolution::kRunHere : Resolution::kLost;
    case PeerOutcome::kRefused:  // the right to run is the source's
      if (destination) return Resolution::kDropReplica;
      return input.worker_alive ? Resolution::kRunHere : Resolution::kLost;
    case PeerOutcome::kUnknown:
      break;
  }
  switch (input.force) {
    case Force::kNone:
      return Resolution::kStay;
    case Force::kStartHere:
      return input.worker_alive ? Resolution::kRunHere : Resolution::kNothingToRun;
    case Force::kDiscard:
      if (input.role == v1::SESSION_ROLE_NONE) return Resolution::kLost;
      return destination ? Resolution::kDropReplica : Resolution::kMoved;
  }
  return Resolution::kStay;
}

bool by_force(const ResolveInput& input) {
  return input.peer == PeerOutcome::kUnknown && input.force != Force::kNone;
}

std::optional<v1::SessionOutcome> outcome_after(Resolution resolution, v1::SessionRole role) {
  const bool destination = role == v1::ROLE_MAY_START;
  switch (resolution) {
    case Resolution::kMoved:
      return v1::OUTCOME_STARTED;
    case Resolution::kDropReplica:
      return v1::OUTCOME_REFUSED;
    case Resolution::kRunHere:
    case Resolution::kLost:
      return destination ? v1::OUTCOME_STARTED : v1::OUTCOME_REFUSED;
    case Resolution::kStay:
    case Resolution::kNothingToRun:
      break;
  }
  return std::nullopt;
}

}  // namespace fvmm::daemon
