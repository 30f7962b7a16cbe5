// The one door to Boost.Asio 1.81 (control plane only): the parts we use, in an order both compilers accept.
// Asio's own accept and connect do not set close-on-exec, so sockets are made with accept4/socket and then assigned.
#pragma once

#include <utility>  // before Asio: its awaitable.hpp uses std::exchange without including it

#define BOOST_ASIO_NO_DEPRECATED 1
#define BOOST_ASIO_DISABLE_VISIBILITY 1
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/system/error_code.hpp>

namespace fvmm::control {
namespace asio = boost::asio;
using AsioError = boost::system::error_code;
}  // namespace fvmm::control
