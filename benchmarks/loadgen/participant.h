// One participant: what it says first, and what it answers to each message of the server.
//
// Decides how gRPC messages and chunks are put together, and the answer: the same bytes each time, which all
// participants share, or the payload of the instruction again (echo). Without echo nothing of an instruction is
// kept, however large. Leaves the bytes of messages to wire.h and flower.h, frames to http2.h, and sockets, time and
// counting over all participants to loadgen.cpp.

#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "comeback.h"
#include "flower.h"
#include "http2.h"
#include "wire.h"

// What is the same for all participants.
struct Script {
  std::string authority, path, id_prefix;
  bool echo = false, accept_cancel = false;
  wire::Sizes sizes;
  uint32_t window = 16 << 20;
  wire::Bytes answer, cancelled;            // as framed() made them
  std::optional<flower::Answers> flower;    // instead, when the server is Flower's
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
    answer = nullptr, leaving = hang_up = thinking = false, end_reason.clear(), reconnect_after = -1;
    brought_message = false;
    if (script_.flower) return;  // its server speaks first
    std::string first;
    if (!script_.id_prefix.empty()) first = wire::hello(id(), script_.accept_cancel);
    else if (script_.accept_cancel) first = wire::hello("", true);
    say(first);
  }

  // Says goodbye and ends its half of the stream.
  void leave() {
    if (leaving) return;
    leaving = true;
    if (script_.flower)
      hang_up = true;
    else
      say(wire::leave("done"), http2::Connection::Last::kYes);
  }

  // The answer that is due, if any, goes out.
  void send_answer() {
    if (answer && !leaving) connection->send(std::move(answer), http2::Connection::Counted::kYes);
    answer = nullptr;
    thinking = false;
  }

  std::optional<http2::Connection> connection;
  State state = State::kAbsent;
  int fd = -1;
  bool wants_to_write = false;  // what epoll has been told
  uint32_t generation = 0;      // +1 per connection and per cancel, so that timers from before it are known
  wire::Bytes answer;           // due, once the participant has thought
  uint32_t connections = 0;     // so far, this one included
  std::chrono::steady_clock::time_point opened_at, heard_at, pinged_at;
  bool thinking = false;        // a timer will send it
  uint64_t messages = 0;        // whole messages received since the caller last set it to 0
  uint64_t cancelled = 0;       // instructions answered with CANCELLED since then
  bool leaving = false;
  bool hang_up = false;         // once everything is sent, the connection is to be closed from this side
  double reconnect_after = -1;  // seconds, when the server has told it to come back
  std::string come_back_to;     // the address, if it was told one
  uint64_t told = 0;            // Reconnects since the caller last set it to 0
  bool brought_message = false;  // the stream has
  comeback::Backoff backoff;
  std::string end_reason;       // why the stream ended; empty for a status of 0

 private:
  std::string id() const { return script_.id_prefix + std::to_string(number_); }

  // What isn't an answer.
  void say(std::string_view message, http2::Connection::Last last = http2::Connection::Last::kNo) {
    auto framed = std::make_shared<const std::string>(wire::framed(message, wire::kNeverCut));
    connection->send(std::move(framed), http2::Connection::Counted::kNo, last);
  }

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
    brought_message = true;
    if (script_.flower) return flower_message(flower::ServerMessage(body_, size_));
    const wire::ServerMessage message(body_, size_);
    switch (message.kind) {
      case wire::Kind::kChunk:
        return chunk(wire::Chunk(message));
      case wire::Kind::kReconnect:  // has no answer
        return reconnect(wire::Reconnect(message));
      case wire::Kind::kCancel:
        return cancel();
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
    due(script_.answer);
    if (script_.echo) {
      const std::string result = wire::result(wire::payload_of_instruction(message));
      answer = std::make_shared<const std::string>(wire::framed(result, script_.sizes));
    }
  }

  void due(const wire::Bytes& what) {
    messages++;
    if (answer) throw wire::Malformed("a second instruction before the answer to the first");
    answer = what;
  }

  // Has no answer of its own. When there is nothing to cancel any more it is to be ignored; and it is never sent to
  // one whose hello doesn't accept it.
  void cancel() {
    if (!answer || !script_.accept_cancel) return;
    cancelled++, generation++;
    answer = script_.cancelled;
    send_answer();
  }

  void reconnect(const wire::Reconnect& wanted) {
    told++;
    come_back_to = wanted.address;
    backoff.reset();
    const double delay = wanted.delay_seconds;
    reconnect_after = std::isfinite(delay) && delay > 0 ? delay : 0;
    leave();
  }

  void flower_message(const flower::ServerMessage& message) {
    due((*script_.flower)[message.kind]);
    if (message.kind != flower::kReconnect) return;
    send_answer();
    reconnect_after = message.reconnect_seconds;
    leave();
  }

  static constexpr size_t kHead = 96;  // three tags and three varints fit in, or a Reconnect with an address

  const Script& script_;
  const uint32_t number_;
  char prefix_[5];
  int have_ = 0;
  uint32_t size_ = 0, left_ = 0;
  std::string body_, assembled_;
  uint64_t assembled_size_ = 0, total_size_ = 0;
};
