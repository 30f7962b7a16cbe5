// Result, Status and Error: what the world does to us, as values that gain context on their way up.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace fvmm {

/// Kinds of failure. Numbers are those of google.rpc.Code, so the control socket carries them unchanged.
enum class Errc : std::uint8_t {
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kAborted = 10,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
  kIo = 16,  // a system call failed; see sys_errno. Sent to clients as kInternal.
};

[[nodiscard]] std::string_view to_string(Errc code) noexcept;

/// One failure. The message reads outermost context first: "migrate web1: connect 127.0.0.1:7000: Connection refused".
class [[nodiscard]] Error {
 public:
  Error(Errc code, std::string message, int sys_errno = 0);

  [[nodiscard]] Errc code() const noexcept { return code_; }
  [[nodiscard]] int sys_errno() const noexcept { return sys_errno_; }  // 0 when no system call failed
  [[nodiscard]] const std::string& message() const noexcept { return message_; }

  /// Puts what was being tried in front of the message.
  Error with(std::string_view context) &&;
  Error with() && { return std::move(*this); }

 private:
  Errc code_;
  int sys_errno_;
  std::string message_;
};

/// A value or an Error. `return Error(...)` and `return value` both work.
template <class T>
class [[nodiscard]] Result : public tl::expected<T, Error> {
 public:
  using Base = tl::expected<T, Error>;
  using Base::Base;
  Result(Error error) : Base(tl::unexpect, std::move(error)) {}  // NOLINT(google-explicit-constructor)
  [[nodiscard]] bool ok() const noexcept { return this->has_value(); }
};

using Status = Result<void>;

namespace detail {
template <class T>
T take(Result<T>&& result) {
  return std::move(*result);
}
inline void take(Status&&) {}
}  // namespace detail

}  // namespace fvmm

/// Value of a Result expression, or returns its error from the enclosing function, with optional context in front.
#define FVMM_TRY(expression, ...) FVMM_TRY_NAMED(FVMM_TRY_NAME(__COUNTER__), expression, __VA_ARGS__)
#define FVMM_TRY_NAME(counter) FVMM_TRY_PASTE(fvmm_try_, counter)
#define FVMM_TRY_PASTE(prefix, counter) prefix##counter
#define FVMM_TRY_NAMED(name, expression, ...)                    \
  __extension__({                                                \
    auto name = (expression);                                    \
    if (!name) return std::move(name.error()).with(__VA_ARGS__); \
    ::fvmm::detail::take(std::move(name));                       \
  })
