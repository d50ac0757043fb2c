// One HTTP/2 connection with one gRPC stream on it, without I/O: bytes received go in, bytes to send come out.
//
// Speaks: the client's preface, SETTINGS and their acknowledgement, HEADERS (request: literals without indexing;
// response: only that the stream has ended, and grpc-status and grpc-message where they stand there as plain
// text), DATA under flow control in both directions, WINDOW_UPDATE, PING (both ways), RST_STREAM, GOAWAY.
// Does not speak: HPACK decoding, padding of DATA, server push, priorities, more than one stream, TLS.
//
// Leaves the socket to loadgen.cpp and the meaning of the stream's bytes to participant.h.

#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>

#include "wire.h"

namespace http2 {

enum Type : uint8_t { kData, kHeaders, kPriority, kRstStream, kSettings, kPushPromise, kPing, kGoaway, kWindowUpdate };
enum Flag : uint8_t { kAck = 1, kEndStream = 1, kEndHeaders = 4, kPadded = 8 };
enum Setting : uint16_t { kEnablePush = 2, kInitialWindowSize = 4, kMaxFrameSize = 5 };

constexpr int64_t kDefaultWindow = 65535;
constexpr uint32_t kDefaultFrame = 16384;

// What a stream's owner is told. `ended` comes once, and nothing after it.
class Listener {
 public:
  virtual void data(const char* bytes, size_t size) = 0;
  virtual void ended(const std::string& why) = 0;  // empty: grpc-status 0, or not readable

 protected:
  ~Listener() = default;
};

class Connection {
 public:
  // `window` bytes may be under way from the server before this side has taken them.
  Connection(Listener& listener, const std::string& authority, const std::string& path, uint32_t window)
      : listener_(listener), window_(window), credit_(window) {
    control_ = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    put_header(control_, 12, kSettings, 0, 0);
    wire::put_number(control_, kEnablePush, 2);
    wire::put_number(control_, 0, 4);
    wire::put_number(control_, kInitialWindowSize, 2);
    wire::put_number(control_, window, 4);
    if (window > kDefaultWindow) put_window_update(0, window - uint32_t(kDefaultWindow));
    std::string block;
    for (const auto& [name, value] : {std::pair<std::string_view, std::string_view>{":method", "POST"},
                                      {":scheme", "http"},
                                      {":path", path},
                                      {":authority", authority},
                                      {"content-type", "application/grpc"},
                                      {"te", "trailers"}}) {
      block += '\0';  // a literal without indexing, with a new name
      put_string(block, name);
      put_string(block, value);
    }
    put_header(control_, uint32_t(block.size()), kHeaders, kEndHeaders, 1);
    control_ += block;
  }

  enum class Last { kNo, kYes };  // after the last bytes of a stream nothing may follow
  enum class Counted { kNo, kYes };

  // Queues bytes of the stream.
  void send(wire::Bytes bytes, Counted counted, Last last = Last::kNo) {
    queue_.push_back({std::move(bytes), counted, last});
  }

  // Queues a ping. Its answer is read like anything else, and shows that the server lives.
  void ping() {
    put_header(control_, 8, kPing, 0, 0);
    wire::put_number(control_, 0, 8);
  }

  // How many pings have come from the server.
  uint64_t pinged() const { return pinged_; }

  // How many of the counted sends have been handed out completely.
  uint64_t sent() const { return sent_; }
  bool idle() const { return queue_.empty(); }

  // What to write to the socket now, at most `kMaxParts` parts; 0 if there is nothing, or nothing may be sent.
  static constexpr int kFrames = 16, kMaxParts = 1 + 2 * kFrames;
  int gather(iovec*& parts) {
    if (first_ == count_) plan();
    parts = parts_ + first_;
    return count_ - first_;
  }

  // The socket has taken so many of the gathered bytes.
  void written(size_t size) {
    while (size > 0) {
      iovec& part = parts_[first_];
      const size_t taken = std::min(size, part.iov_len);
      part.iov_base = static_cast<char*>(part.iov_base) + taken;
      part.iov_len -= taken;
      size -= taken;
      if (part.iov_len == 0) first_++;
    }
  }

  // Bytes have arrived. Calls the listener.
  void receive(const char* bytes, size_t size) {
    while (size > 0 && !over_) {
      if (have_ < 9) {
        const size_t taken = std::min(size, size_t(9 - have_));
        std::copy_n(bytes, taken, header_ + have_);
        have_ += int(taken), bytes += taken, size -= taken;
        if (have_ < 9) return;
        begin_frame();
      }
      const size_t taken = std::min(size, size_t(left_));
      if (taken > 0 && !over_) {
        if (type_ != kData)
          payload_.append(bytes, taken);
        else if (stream_ == 1)
          listener_.data(bytes, taken);
        left_ -= uint32_t(taken), bytes += taken, size -= taken;
      }
      if (left_ == 0 && !over_) {
        have_ = 0;
        end_frame();
      }
    }
  }

  // Ends the conversation from outside: the socket has closed, or the owner has seen enough.
  void end(const std::string& why) {
    if (over_) return;
    over_ = true;
    listener_.ended(why);
  }

  bool over() const { return over_; }

 private:
  struct Send {
    wire::Bytes bytes;
    Counted counted;
    Last last;
  };

  static void put_header(std::string& out, uint32_t length, uint8_t type, uint8_t flags, uint32_t stream) {
    wire::put_number(out, length, 3);
    out += char(type);
    out += char(flags);
    wire::put_number(out, stream, 4);
  }

  static void put_string(std::string& block, std::string_view text) {  // HPACK, without Huffman (RFC 7541, 5.2)
    if (text.size() < 127) {
      block += char(text.size());
    } else {
      block += char(127);
      wire::put_varint(block, text.size() - 127);
    }
    block += text;
  }

  void put_window_update(uint32_t stream, uint32_t by) {
    put_header(control_, 4, kWindowUpdate, 0, stream);
    wire::put_number(control_, by, 4);
  }

  // Lays out what is written next. The parts point into `control_out_`, `heads_` and queued messages, which stay
  // as they are until all parts are written.
  void plan() {
    for (; planned_ > 0; planned_--, queue_.pop_front()) sent_ += queue_.front().counted == Counted::kYes;
    first_ = count_ = 0;
    if (!control_.empty()) {
      control_out_.swap(control_);
      control_.clear();
      parts_[count_++] = {control_out_.data(), control_out_.size()};
    }
    heads_.clear();  // never grows beyond what is reserved, so that pointers into it hold
    heads_.reserve(9 * kFrames);
    for (int frame = 0; frame < kFrames && planned_ < queue_.size(); frame++) {
      const Send& next = queue_[planned_];
      const int64_t rest = int64_t(next.bytes->size() - offset_);
      const int64_t size = std::min({rest, int64_t(max_frame_), send_window_, stream_window_});
      if (size <= 0) break;
      send_window_ -= size, stream_window_ -= size;
      const bool last = size == rest;
      char* const head = heads_.data() + heads_.size();
      put_header(heads_, uint32_t(size), kData, last && next.last == Last::kYes ? kEndStream : 0, 1);
      parts_[count_++] = {head, 9};
      parts_[count_++] = {const_cast<char*>(next.bytes->data()) + offset_, size_t(size)};
      offset_ = last ? 0 : offset_ + size_t(size);
      planned_ += last;
    }
  }

  void begin_frame() {
    left_ = wire::get_number(header_, 3);
    type_ = uint8_t(header_[3]);
    flags_ = uint8_t(header_[4]);
    stream_ = wire::get_number(header_ + 5, 4) & 0x7FFFFFFF;
    payload_.clear();
    if (left_ > kDefaultFrame) return end("the server sent a frame over the limit");
    if (type_ != kData) return;
    if (flags_ & kPadded) return end("the server sent padding");
    credit_ -= left_;
    if (credit_ < 0) end("the server overran the flow-control window");
  }

  void end_frame() {
    const char* const payload = payload_.data();
    const size_t size = payload_.size();
    switch (type_) {
      case kData:
        // One stream, so its window and the connection's are used alike: both are topped up at half.
        if (credit_ <= window_ / 2) {
          const uint32_t by = uint32_t(window_ - credit_);
          put_window_update(0, by);
          put_window_update(1, by);
          credit_ = window_;
        }
        break;
      case kHeaders:
        if (flags_ & kEndStream) return end(status());
        break;
      case kRstStream:
        if (stream_ == 1 && size == 4) return end("RST_STREAM " + std::to_string(wire::get_number(payload, 4)));
        break;
      case kSettings:
        if (!(flags_ & kAck)) settings();
        break;
      case kPing:
        if (!(flags_ & kAck) && size == 8) {
          pinged_++;
          put_header(control_, 8, kPing, kAck, 0);
          control_.append(payload, 8);
        }
        break;
      case kGoaway:
        // A stream that the server has seen may go on until it ends of itself.
        if (size < 8 || (wire::get_number(payload, 4) & 0x7FFFFFFF) < 1 || wire::get_number(payload + 4, 4) != 0)
          return end("GOAWAY " + (size < 8 ? "" : payload_.substr(8)));
        break;
      case kWindowUpdate:
        if (size == 4) (stream_ == 0 ? send_window_ : stream_window_) += wire::get_number(payload, 4) & 0x7FFFFFFF;
        break;
      default:
        break;  // unknown frames are to be ignored (RFC 9113, 4.1)
    }
    if (flags_ & kEndStream && type_ == kData && stream_ == 1) return end("the stream ended without trailers");
    if (control_.size() > kMaxControl) end("the server doesn't read what it asks for");
  }

  void settings() {
    for (size_t at = 0; at + 6 <= payload_.size(); at += 6) {
      const uint32_t value = wire::get_number(payload_.data() + at + 2, 4);
      switch (wire::get_number(payload_.data() + at, 2)) {
        case kInitialWindowSize:  // also for the stream that is open already (RFC 9113, 6.9.2)
          stream_window_ += int64_t(value) - initial_window_;
          initial_window_ = value;
          break;
        case kMaxFrameSize:
          max_frame_ = value;
          break;
      }
    }
    put_header(control_, 0, kSettings, kAck, 0);
  }

  // The trailers' grpc-status and grpc-message where they are literals, as gRPC's C core writes them.
  std::string status() const {
    const std::string code = literal("grpc-status");
    if (code.empty() || code == "0") return "";
    return "grpc-status " + code + ": " + literal("grpc-message");
  }

  std::string literal(const std::string& name) const {
    const size_t found = payload_.find(char(name.size()) + name);
    const size_t at = found + 1 + name.size();
    if (found == std::string::npos || at >= payload_.size()) return "";
    size_t length = uint8_t(payload_[at]), from = at + 1;
    if (length > 127) return "(Huffman-coded)";
    if (length == 127 && from < payload_.size()) length += uint8_t(payload_[from++]) & 0x7F;
    return from < payload_.size() ? payload_.substr(from, length) : "";
  }

  static constexpr size_t kMaxControl = 1 << 20;

  Listener& listener_;
  bool over_ = false;

  // Receiving: the frame under way, and how much the server may still send.
  char header_[9];
  int have_ = 0;
  uint32_t left_ = 0, stream_ = 0;
  uint8_t type_ = 0, flags_ = 0;
  std::string payload_;
  int64_t window_, credit_;
  uint64_t pinged_ = 0;

  // Sending: control frames, then the stream's bytes as far as the server's windows allow.
  std::string control_, control_out_, heads_;
  std::deque<Send> queue_;
  size_t offset_ = 0, planned_ = 0;
  uint64_t sent_ = 0;
  int64_t send_window_ = kDefaultWindow, stream_window_ = kDefaultWindow, initial_window_ = kDefaultWindow;
  uint32_t max_frame_ = kDefaultFrame;
  iovec parts_[kMaxParts];
  int first_ = 0, count_ = 0;
};

}  // namespace http2
