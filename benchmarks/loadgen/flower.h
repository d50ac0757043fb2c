// Bytes of the messages of Flower's grpc-bidi server: what a client of flwr 1.42 answers in rounds of FedAvg.
//
// Decides the encoding of flwr/proto/transport.proto as far as FedAvg needs it. A ClientMessage answers in the
// field of the same number as the ServerMessage asks in. There, the server speaks first, there are no chunks, no
// cancel and no leave: who wants to go closes the connection. Never looks into an instruction but for its kind.

#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "wire.h"

namespace flower {

constexpr char kPath[] = "/flwr.proto.FlowerService/Join";

enum Kind : uint8_t { kReconnect = 1, kGetProperties = 2, kGetParameters = 3, kFit = 4, kEvaluate = 5 };

using Answers = std::array<wire::Bytes, 6>;  // framed, by the kind of what they answer

// The .npy file (version 1.0) of a float32 array of so many bytes, as NumPy writes it.
inline std::string npy(size_t bytes) {
  std::string head = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + std::to_string(bytes / 4) + ",), }";
  head.append(63 - (10 + head.size()) % 64, ' ');
  head += '\n';
  std::string file("\x93NUMPY\1\0", 8);
  file += char(head.size()), file += char(head.size() >> 8);
  file.reserve(file.size() + head.size() + bytes);
  return file + head + wire::ones(bytes);
}

// What to answer, with a model of so many bytes.
inline Answers answers(size_t bytes) {
  using wire::tag;
  const uint8_t number = tag(1, 1);  // a double in Flower's Scalar
  std::string parameters, status, disconnect, properties, get_parameters, fit, evaluate;
  parameters.reserve(bytes + 256), get_parameters.reserve(bytes + 256), fit.reserve(bytes + 256);
  wire::put_field(parameters, tag(1), npy(bytes));
  wire::put_field(parameters, tag(2), "numpy.ndarray");
  wire::put_field(status, tag(2), "Success");  // the code is 0, which isn't written
  disconnect += char(tag(1, 0)), disconnect += '\1';  // RECONNECT
  wire::put_field(properties, tag(1), status);
  wire::put_field(get_parameters, tag(1), status);
  wire::put_field(get_parameters, tag(2), parameters);
  wire::put_field(fit, tag(1), status);
  wire::put_field(fit, tag(2), parameters);
  fit += char(tag(3, 0)), fit += '\1';  // one example
  wire::put_field(fit, tag(4), wire::metric("loss", number, 0.5));
  const float loss = 0.5;
  wire::put_field(evaluate, tag(1), status);
  evaluate += char(tag(2, 5)), evaluate.append(reinterpret_cast<const char*>(&loss), sizeof loss);
  evaluate += char(tag(3, 0)), evaluate += '\1';
  wire::put_field(evaluate, tag(4), wire::metric("loss", number, 0.5));

  Answers all;
  const std::string* const by_kind[] = {nullptr, &disconnect, &properties, &get_parameters, &fit, &evaluate};
  for (int kind = kReconnect; kind <= kEvaluate; kind++) {
    std::string message;
    message.reserve(by_kind[kind]->size() + 16);
    wire::put_field(message, tag(kind), *by_kind[kind]);
    all[kind] = std::make_shared<const std::string>(wire::framed(message, wire::kNeverCut));
  }
  return all;
}

// What the server asks for. `head` is the beginning of its message, `size` the whole length.
struct ServerMessage {
  ServerMessage(std::string_view head, uint64_t size) {
    wire::Fields fields(head, size);
    if (!fields.next()) throw wire::Malformed("a ServerMessage of Flower without content");
    const int field = fields.tag >> 3;
    if (field < kReconnect || field > kEvaluate || (fields.tag & 7) != wire::kLengthDelimited)
      throw wire::Malformed("a ServerMessage of Flower of unknown kind");
    kind = Kind(field);
    if (kind != kReconnect) return;
    wire::Fields inner(fields.content(), fields.number);
    while (inner.next())
      if (inner.tag == wire::tag(1, 0)) reconnect_seconds = double(inner.number);
  }

  Kind kind = kReconnect;
  double reconnect_seconds = -1;  // below 0: it shall not come back
};

}  // namespace flower
