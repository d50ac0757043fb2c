// Bytes of Muster's stream messages: how a participant writes its own and reads those of the server.
//
// Decides the protobuf and gRPC encoding, by hand, of the few messages that a participant needs (stream.proto,
// PROTOCOL.md part A). Leaves HTTP/2 to http2.h, what to answer when to participant.h, and the messages of
// another server to flower.h.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

namespace wire {

using Bytes = std::shared_ptr<const std::string>;  // shared, because thousands send the same answer

// A message out of the server's mouth that can't be read. The text says why.
struct Malformed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr uint8_t kLengthDelimited = 2;
constexpr uint8_t tag(int field, uint8_t type = kLengthDelimited) { return uint8_t(field << 3 | type); }

// Big-endian, as HTTP/2 and gRPC write numbers.
inline void put_number(std::string& out, uint64_t value, int bytes) {
  while (bytes-- > 0) out += char(value >> (8 * bytes));
}

inline uint32_t get_number(const char* from, int bytes) {
  uint32_t value = 0;
  for (int i = 0; i < bytes; i++) value = value << 8 | uint8_t(from[i]);
  return value;
}

inline void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += char(value | 0x80);
  out += char(value);
}

inline void put_double(std::string& out, uint8_t tag, double value) {
  out += char(tag);
  out.append(reinterpret_cast<const char*>(&value), sizeof value);  // little-endian on the wire and here
}

inline void put_field(std::string& out, uint8_t tag, std::string_view value) {
  out += char(tag);
  put_varint(out, value.size());
  out += value;
}

// Walks over the fields of one protobuf message, of which only the first bytes need be there: `size` is how long
// it is, `head` what is known of it. So a caller that wants lengths alone needs no payload in memory.
class Fields {
 public:
  Fields(std::string_view head, uint64_t size) : head_(head), size_(size) {}

  // Moves to the next field that begins within the known bytes; false at the end of those.
  bool next() {
    position_ = end_;
    if (position_ >= head_.size()) return false;
    tag = uint8_t(head_[position_++]);
    number = 0;
    switch (tag & 7) {
      case 0: number = varint(); end_ = position_; break;
      case 1: end_ = position_ + 8; break;
      case 5: end_ = position_ + 4; break;
      case 2: number = varint(); end_ = position_ + number; break;
      default: throw Malformed("a protobuf field of unknown type");
    }
    if (end_ < position_ || end_ > size_) throw Malformed("a protobuf field that is longer than its message");
    return true;
  }

  // What is known of the current field's content.
  std::string_view content() const {
    const uint64_t from = std::min<uint64_t>(position_, head_.size());
    return head_.substr(from, end_ - from);
  }

  uint8_t tag = 0;
  uint64_t number = 0;  // a varint's value, or the length of a length-delimited field

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && position_ < head_.size(); shift += 7) {
      const uint8_t byte = uint8_t(head_[position_++]);
      value |= uint64_t(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    throw Malformed("a protobuf number without an end");
  }

  std::string_view head_;
  uint64_t size_, position_ = 0, end_ = 0;
};

// What a participant says ------------------------------------------------------------------------------------

inline std::string hello(std::string_view participant_id, bool accepts_cancel) {
  std::string inner, message;
  if (!participant_id.empty()) put_field(inner, tag(1), participant_id);
  if (accepts_cancel) inner += char(tag(4, 0)), inner += '\1';
  put_field(message, tag(1), inner);
  return message;
}

inline std::string result(std::string_view payload) {
  std::string inner, message;
  inner.reserve(payload.size() + 16);
  if (!payload.empty()) put_field(inner, tag(5), payload);
  message.reserve(inner.size() + 16);
  put_field(message, tag(2), inner);
  return message;
}

// `bytes` / 4 times the float32 number 1.
inline std::string ones(size_t bytes) {
  const float one = 1;
  std::string data;
  data.reserve(bytes);
  while (data.size() < bytes) data.append(reinterpret_cast<const char*>(&one), sizeof one);
  return data;
}

// An entry of a map<string, Scalar>, where `value_tag` is that of a double in this Scalar.
inline std::string metric(std::string_view name, uint8_t value_tag, double value) {
  std::string scalar, entry;
  put_double(scalar, value_tag, value);
  put_field(entry, tag(1), name);
  put_field(entry, tag(2), scalar);
  return entry;
}

// A Result with a tensor "w" of float32, a metric "loss" and the weight 1: something to average.
inline std::string tensor_result(size_t bytes) {
  std::string shape, tensor, inner, message;
  put_varint(shape, bytes / 4);
  tensor.reserve(bytes + 64), inner.reserve(bytes + 128), message.reserve(bytes + 128);
  put_field(tensor, tag(1), "w");
  tensor += char(tag(2, 0)), tensor += '\2';  // FLOAT32
  put_field(tensor, tag(3), shape);           // packed
  put_field(tensor, tag(4), ones(bytes));
  put_field(inner, tag(2), metric("loss", tag(3, 1), 0.5));
  put_field(inner, tag(3), tensor);
  put_double(inner, tag(4, 1), 1);
  put_field(message, tag(2), inner);
  return message;
}

inline std::string cancelled() {
  std::string inner, message;
  inner += char(tag(1, 0)), inner += '\4';  // CANCELLED
  put_field(inner, tag(2), "cancelled while thinking");
  put_field(message, tag(3), inner);
  return message;
}

inline std::string leave(std::string_view reason) {
  std::string inner, message;
  put_field(inner, tag(1), reason);
  put_field(message, tag(4), inner);
  return message;
}

// When messages are cut, and into what.
struct Sizes {
  size_t whole = 1 << 20;   // a message of so many bytes still goes as it is
  size_t chunk = 256 << 10;  // bytes of each chunk of a larger one; 0: never in chunks
};

constexpr Sizes kNeverCut{0, 0};

// The gRPC messages that carry `message`, one after the other: it alone, or its chunks.
inline std::string framed(std::string_view message, const Sizes& sizes) {
  std::string out;
  const auto put_grpc = [&](std::string_view body) {
    out += '\0';  // not compressed
    put_number(out, body.size(), 4);
    out += body;
  };
  if (sizes.chunk == 0 || message.size() <= sizes.whole) {
    out.reserve(message.size() + 5);
    put_grpc(message);
    return out;
  }
  out.reserve(message.size() + (message.size() / sizes.chunk + 1) * 32);
  // The first chunk is small: it is what a server must hold that has no room yet for the others.
  const size_t first = std::min<size_t>(4096, sizes.chunk);
  for (size_t at = 0; at < message.size(); at += at == 0 ? first : sizes.chunk) {
    std::string chunk, piece;
    if (at == 0) {
      chunk += char(tag(1, 0));
      put_varint(chunk, message.size());
    }
    put_field(chunk, tag(2), message.substr(at, at == 0 ? first : sizes.chunk));
    put_field(piece, tag(5), chunk);
    put_grpc(piece);
  }
  return out;
}

// What the server says ---------------------------------------------------------------------------------------

enum class Kind : uint8_t { kEmpty = 0, kInstruction = tag(1), kReconnect = tag(2), kCancel = tag(3), kChunk = tag(4) };

// The content of the one field of a ServerMessage. `head` is the message's beginning, `size` its whole length.
struct ServerMessage {
  ServerMessage(std::string_view head, uint64_t size) {
    Fields fields(head, size);
    if (!fields.next()) return;
    kind = Kind(fields.tag);
    content = fields.content();
    content_size = fields.number;
    if (kind < Kind::kInstruction || kind > Kind::kChunk || (fields.tag & 7) != kLengthDelimited)
      throw Malformed("a ServerMessage of unknown kind");
  }

  Kind kind = Kind::kEmpty;
  std::string_view content;
  uint64_t content_size = 0;
};

// A chunk's two fields. Relies on total_size being written before data, as every serialiser does.
struct Chunk {
  explicit Chunk(const ServerMessage& message) {
    Fields fields(message.content, message.content_size);
    while (fields.next()) {
      if (fields.tag == tag(1, 0)) total_size = fields.number;
      if (fields.tag == tag(2)) data = fields.content(), data_size = fields.number;
    }
  }

  uint64_t total_size = 0, data_size = 0;
  std::string_view data;
};

inline std::string_view payload_of_instruction(const ServerMessage& message) {
  Fields fields(message.content, message.content_size);
  std::string_view payload;
  while (fields.next())
    if (fields.tag == tag(4)) payload = fields.content();
  return payload;
}

// How long to wait before coming back, and to where. An address that isn't known to its end is left out.
struct Reconnect {
  explicit Reconnect(const ServerMessage& message) {
    Fields fields(message.content, message.content_size);
    while (fields.next()) {
      const std::string_view content = fields.content();
      if (fields.tag == tag(1, 1) && content.size() == 8)
        std::memcpy(&delay_seconds, content.data(), 8);  // little-endian on the wire and here
      if (fields.tag == tag(2) && content.size() == fields.number) address = content;
    }
  }

  double delay_seconds = 0;
  std::string_view address;
};

}  // namespace wire
