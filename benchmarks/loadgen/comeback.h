// When a participant whose stream is over comes back, and to where (PROTOCOL.md, A.7 and A.10).
//
// Decides the wait, and after which ends there is none. Without clock and randomness of its own; the waiting is
// loadgen.cpp's.

#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>

namespace comeback {

constexpr double kLasted = 10;  // seconds after which the end of a stream isn't one more failed attempt
constexpr double kPatience = 3;  // seconds that the server gets to end the stream of one that has left

// Full jitter: the whole interval, so that thousands that lost one server don't return together.
class Backoff {
 public:
  // Seconds until the next attempt. `random` is in [0, 1).
  double next(double random) {
    const double wait = random * std::min(30.0, std::ldexp(1.0, std::min(attempts_, 10)));
    attempts_++;
    return wait;
  }

  void reset() { attempts_ = 0; }

 private:
  int attempts_ = 0;
};

// Whether a stream that ended like this must not be opened again: it would end the same way, or displace another.
inline bool is_final(const std::string& why) {
  const std::string prefix = "grpc-status ";
  if (why.compare(0, prefix.size(), prefix) != 0) return false;
  switch (std::atoi(why.c_str() + prefix.size())) {
    case 3:   // INVALID_ARGUMENT
    case 6:   // ALREADY_EXISTS
    case 7:   // PERMISSION_DENIED
    case 12:  // UNIMPLEMENTED
    case 16:  // UNAUTHENTICATED
      return true;
  }
  return false;
}

// The address that a Reconnect names. Nothing if it names none, or a name that would have to be looked up.
inline std::optional<sockaddr_in> elsewhere(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return std::nullopt;
  sockaddr_in found{};
  found.sin_family = AF_INET;
  const int port = std::atoi(address.c_str() + colon + 1);
  if (port < 1 || port > 65535 || inet_pton(AF_INET, address.substr(0, colon).c_str(), &found.sin_addr) != 1)
    return std::nullopt;
  found.sin_port = htons(uint16_t(port));
  return found;
}

}  // namespace comeback
