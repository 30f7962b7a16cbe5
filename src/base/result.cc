#include "base/result.h"

#include <cstring>

namespace fvmm {

std::string_view to_string(Errc code) noexcept {
  switch (code) {
    case Errc::kCancelled:
      return "CANCELLED";
    case Errc::kUnknown:
      return "UNKNOWN";
    case Errc::kInvalidArgument:
      return "INVALID_ARGUMENT";
    case Errc::kDeadlineExceeded:
      return "DEADLINE_EXCEEDED";
    case Errc::kNotFound:
      return "NOT_FOUND";
    case Errc::kAlreadyExists:
      return "ALREADY_EXISTS";
    case Errc::kPermissionDenied:
      return "PERMISSION_DENIED";
    case Errc::kResourceExhausted:
      return "RESOURCE_EXHAUSTED";
    case Errc::kFailedPrecondition:
      return "FAILED_PRECONDITION";
    case Errc::kAborted:
      return "ABORTED";
    case Errc::kOutOfRange:
      return "OUT_OF_RANGE";
    case Errc::kUnimplemented:
      return "UNIMPLEMENTED";
    case Errc::kInternal:
      return "INTERNAL";
    case Errc::kUnavailable:
      return "UNAVAILABLE";
    case Errc::kDataLoss:
      return "DATA_LOSS";
    case Errc::kIo:
      return "IO";
  }
  return "INVALID";
}

Error::Error(Errc code, std::string message, int sys_errno)
    : code_(code), sys_errno_(sys_errno), message_(std::move(message)) {
  if (sys_errno_ != 0) {
    message_ += ": ";
    message_ += ::strerror(sys_errno_);  // NOLINT(concurrency-mt-unsafe): glibc's is thread-safe
  }
}

Error Error::with(std::string_view context) && {
  if (!context.empty()) message_.insert(0, std::string(context) + ": ");
  return std::move(*this);
}

}  // namespace fvmm
