// One participant: what it says first, and what it answers to each message of the server.
//
// Decides how gRPC messages and chunks are put together, and the answer: the same bytes each time, or the payload
// of the instruction again (echo). Leaves the bytes of messages to wire.h, frames to http2.h, and sockets, time
// and counting over all participants to loadgen.cpp.

#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "http2.h"
#include "wire.h"

// What is the same for all participants.
struct Script {
  std::string authority, path = "/muster.stream.v1.ParticipantManager/Connect", id_prefix;
  bool echo = false;
  size_t chunk_size = 1 << 20;
  uint32_t window = 16 << 20;
  wire::Bytes answer;  // as framed() made it
};

class Participant final : http2::Listener {
 public:
  enum class State { kAbsent, kConnecting, kOpen };

  Participant(const Script& script, uint32_t number) : script_(script), number_(number) {}

  // The socket is connected: says what comes first. Nothing of an earlier stream is kept.
  void open() {
    connection.emplace(static_cast<http2::Listener&>(*this), script_.authority, script_.path, script_.window);
    state = State::kOpen;
    have_ = 0;
    assembled_.clear(), assembled_size_ = total_size_ = 0;
    answer = nullptr, leaving = thinking = false, end_reason.clear(), reconnect_after = -1;
    const std::string first =
        script_.id_prefix.empty() ? "" : wire::hello(script_.id_prefix + std::to_string(number_));
    connection->send(std::make_shared<const std::string>(wire::framed(first, 0)));
  }

  // Says goodbye and ends its half of the stream.
  void leave() {
    if (leaving) return;
    leaving = true;
    connection->send(std::make_shared<const std::string>(wire::framed(wire::leave("done"), 0)), true);
  }

  // The answer that is due, if any, goes out.
  void send_answer() {
    if (answer && !leaving) connection->send(std::move(answer));
    answer = nullptr;
    thinking = false;
  }

  // How many answers there are among the sends from `first` on and before `end`. The first send of a stream is
  // what opens it, and with `leaving` the last one is the leave.
  uint64_t answers_among(uint64_t first, uint64_t end) const {
    if (first == end) return 0;
    return end - first - (first == 0) - (leaving && connection->idle());
  }

  std::optional<http2::Connection> connection;
  State state = State::kAbsent;
  int fd = -1;
  bool wants_to_write = false;  // what epoll has been told
  uint32_t generation = 0;      // +1 per connection, so that timers of an earlier one are known
  wire::Bytes answer;           // due, once the participant has thought
  bool thinking = false;        // a timer will send it
  uint64_t messages = 0;        // whole messages received since the caller last set it to 0
  bool leaving = false;
  double reconnect_after = -1;  // seconds, when the server has told it to come back
  std::string end_reason;       // why the stream ended; empty for a status of 0

 private:
  void ended(const std::string& why) override { end_reason = why; }

  void data(const char* bytes, size_t size) override {
    try {
      while (size > 0 && !connection->over()) {
        if (have_ < 5) {
          const size_t taken = std::min(size, size_t(5 - have_));
          std::copy_n(bytes, taken, prefix_ + have_);
          have_ += int(taken), bytes += taken, size -= taken;
          if (have_ < 5) return;
          if (prefix_[0] != 0) throw wire::Malformed("a compressed message");
          size_ = left_ = wire::get_number(prefix_ + 1, 4);
          body_.clear();
          if (script_.echo) body_.reserve(size_);
        }
        const size_t taken = std::min(size, size_t(left_));
        // Without echo nothing but lengths matters, and those are in the first bytes.
        const size_t kept = script_.echo ? taken : std::min(taken, kHead - std::min(kHead, body_.size()));
        body_.append(bytes, kept);
        left_ -= uint32_t(taken), bytes += taken, size -= taken;
        if (left_ == 0) {
          have_ = 0;
          grpc_message();
        }
      }
    } catch (const wire::Malformed& malformed) {
      connection->end(malformed.what());
    }
  }

  void grpc_message() {
    const wire::ServerMessage message(body_, size_);
    switch (message.kind) {
      case wire::Kind::kChunk:
        return chunk(wire::Chunk(message));
      case wire::Kind::kReconnect:  // has no answer
        messages++;
        reconnect_after = wire::delay_of_reconnect(message);
        return leave();
      case wire::Kind::kCancel:  // is never sent to one whose hello doesn't accept it, and has no answer
        return;
      default:
        return instruction(message);
    }
  }

  void chunk(const wire::Chunk& chunk) {
    if (total_size_ == 0) {
      if (chunk.total_size == 0) throw wire::Malformed("a first chunk without a total size");
      total_size_ = chunk.total_size;
      if (script_.echo) assembled_.reserve(total_size_);
    }
    assembled_size_ += chunk.data_size;
    if (assembled_size_ > total_size_) throw wire::Malformed("chunks that exceed their total size");
    if (script_.echo) assembled_ += chunk.data;
    if (assembled_size_ < total_size_) return;
    const std::string whole = std::move(assembled_);
    assembled_.clear(), assembled_size_ = total_size_ = 0;
    instruction(script_.echo ? wire::ServerMessage(whole, whole.size()) : wire::ServerMessage({}, 0));
  }

  void instruction(const wire::ServerMessage& message) {
    messages++;
    if (answer) throw wire::Malformed("a second instruction before the answer to the first");
    answer = script_.answer;
    if (script_.echo) {
      const std::string result = wire::result(wire::payload_of_instruction(message));
      answer = std::make_shared<const std::string>(wire::framed(result, script_.chunk_size));
    }
  }

  static constexpr size_t kHead = 40;  // three tags and three varints fit in

  const Script& script_;
  const uint32_t number_;
  char prefix_[5];
  int have_ = 0;
  uint32_t size_ = 0, left_ = 0;
  std::string body_, assembled_;
  uint64_t assembled_size_ = 0, total_size_ = 0;
};
