// What the load generator can be told on its command line.
//
// Decides the options, their defaults, and which of them make no sense together. What they do is decided where they
// are used: loadgen.cpp (Options) and participant.h (Script).

#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>

#include "participant.h"

struct Options {
  std::string host = "127.0.0.1";
  uint16_t port = 0;
  uint32_t participants = 1;
  uint32_t source_addresses = 0;
  double think_seconds = 0, connect_rate = 0, duration = 0, reconnect_seconds = -1;
  double ping_seconds = 0;
  uint32_t seed = 1;
  bool think_exponential = false, leave = false, reconnect = false, round_times = false, verbose = false;
};

inline const char kUsage[] = R"(usage: loadgen --port PORT [options]
  --host HOST             where the server is (127.0.0.1)
  --participants N        how many, each with a TCP connection of its own (1)
  --id-prefix TEXT        say hello as TEXT0, TEXT1, ...; without it the first message is empty
  --answer-size BYTES     payload of each answer (100)
  --tensor-bytes BYTES    answer with a float32 tensor "w" of so many bytes, weight 1 and a metric "loss" instead
  --echo                  answer with the instruction's own payload instead
  --flower                be clients of Flower's grpc-bidi server; the model has --tensor-bytes (100)
  --accept-cancel         say so in the hello; a cancel while thinking is answered with CANCELLED at once
  --whole-size BYTES      messages up to this size go whole, larger ones in chunks (1048576)
  --chunk-size BYTES      bytes in each chunk; 0: never in chunks (262144)
  --think-ms MS           answer so much later (0)
  --think-exponential     ... on average, exponentially distributed
  --connect-rate RATE     connections per second; 0: all at once (0)
  --reconnect             come back whenever a stream ends, after a random time (PROTOCOL.md, A.10)
  --reconnect-ms MS       ... always after so long instead; with neither, only those that were told to
  --ping-seconds S        ping the server after so long without a word of it, and take it for dead after half of
                          that again; 0: never (0)
  --seed N                of all random times (1)
  --duration SECONDS      how long; 0: until SIGTERM or SIGINT (0)
  --leave                 at the end, send a leave and wait for the server's trailers (at most 5 s)
  --source-addresses K    connect from 127.0.0.1 ... 127.0.0.K, each with ports of its own
  --path PATH             the method (/muster.stream.v1.ParticipantManager/Connect, or Flower's)
  --window BYTES          flow-control window given to the server (16777216)
  --round-times           at the end, tell when each round of instructions came and was answered
  --verbose               a line per second on stderr
)";

// Reads the command line; exits with a sentence if it makes no sense.
inline void read_options(int argc, char** argv, Options& options, Script& script) {
  const auto refuse = [](const std::string& why) {
    std::fprintf(stderr, "loadgen: %s\n%s", why.c_str(), kUsage);
    std::exit(2);
  };
  double port = 0, participants = 1, answer_size = 100, tensor_bytes = -1, think_ms = 0, reconnect_ms = -1, seed = 1;
  double whole_size = double(script.sizes.whole), chunk_size = double(script.sizes.chunk);
  double window = double(script.window), sources = 0;
  bool flower = false;
  const std::map<std::string, double*> numbers = {
      {"--port", &port}, {"--participants", &participants}, {"--answer-size", &answer_size},
      {"--tensor-bytes", &tensor_bytes}, {"--think-ms", &think_ms}, {"--reconnect-ms", &reconnect_ms},
      {"--source-addresses", &sources}, {"--whole-size", &whole_size}, {"--chunk-size", &chunk_size},
      {"--ping-seconds", &options.ping_seconds}, {"--seed", &seed}, {"--window", &window},
      {"--connect-rate", &options.connect_rate}, {"--duration", &options.duration}};
  const std::map<std::string, std::string*> texts = {
      {"--host", &options.host}, {"--id-prefix", &script.id_prefix}, {"--path", &script.path}};
  const std::map<std::string, bool*> flags = {
      {"--echo", &script.echo}, {"--flower", &flower}, {"--accept-cancel", &script.accept_cancel},
      {"--think-exponential", &options.think_exponential}, {"--leave", &options.leave},
      {"--reconnect", &options.reconnect}, {"--round-times", &options.round_times},
      {"--verbose", &options.verbose}};
  for (int i = 1; i < argc; i++) {
    const std::string name = argv[i];
    if (name == "--help") {
      std::fputs(kUsage, stdout);
      std::exit(0);
    }
    if (const auto flag = flags.find(name); flag != flags.end()) {
      *flag->second = true;
      continue;
    }
    const auto text = texts.find(name);
    const auto number = numbers.find(name);
    if (text == texts.end() && number == numbers.end()) refuse("there is no option " + name);
    if (++i == argc) refuse(name + " wants a value");
    if (text != texts.end()) {
      *text->second = argv[i];
      continue;
    }
    char* end = nullptr;
    *number->second = std::strtod(argv[i], &end);
    if (end == argv[i] || *end != '\0' || !(*number->second >= 0) || *number->second > 1e10)
      refuse(name + " wants a number of at least 0, not " + argv[i]);
  }
  if (port < 1 || port > 65535) refuse("--port must be 1 to 65535");
  if (participants < 1 || participants > 1e6) refuse("--participants must be 1 to 1000000");
  if (window < 65535 || window > 0x7FFFFFFF) refuse("--window must be 65535 to 2147483647");
  if (answer_size > 2e9 || tensor_bytes > 2e9) refuse("no message may be larger than 2 GB");
  if (tensor_bytes >= 0 && size_t(tensor_bytes) % 4) refuse("--tensor-bytes must be a multiple of 4");
  if (options.reconnect && (flower || reconnect_ms >= 0))
    refuse("--reconnect goes with neither --flower nor --reconnect-ms");
  if (script.echo && (flower || tensor_bytes >= 0)) refuse("--echo goes with neither --flower nor --tensor-bytes");
  if (flower && (!script.id_prefix.empty() || script.accept_cancel))
    refuse("Flower's clients have no ids and know no cancel");
  options.port = uint16_t(port);
  options.participants = uint32_t(participants);
  options.source_addresses = uint32_t(sources);
  options.think_seconds = think_ms / 1000;
  options.seed = uint32_t(seed);
  options.reconnect_seconds = reconnect_ms < 0 ? -1 : reconnect_ms / 1000;
  script.sizes = {size_t(whole_size), size_t(chunk_size)};
  script.window = uint32_t(window);
  script.authority = options.host + ":" + std::to_string(options.port);
  if (script.path.empty()) script.path = flower ? flower::kPath : "/muster.stream.v1.ParticipantManager/Connect";
  if (flower) {
    script.flower = flower::answers(tensor_bytes < 0 ? 100 : size_t(tensor_bytes));
    return;
  }
  const auto framed = [&](const std::string& message) {
    return std::make_shared<const std::string>(wire::framed(message, script.sizes));
  };
  const std::string payload(script.echo ? 0 : size_t(answer_size), 'm');
  script.answer = framed(tensor_bytes < 0 ? wire::result(payload) : wire::tensor_result(size_t(tensor_bytes)));
  script.cancelled = framed(wire::cancelled());
}
