// What the load generator counts over all participants, and how it says it.
//
// Decides the JSON line that signals, --verbose and the end print.

#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <string>

struct Counts {
  uint64_t connected = 0;   // connections made so far
  uint64_t open = 0;        // participants connected now
  uint64_t waiting = 0;     // ... that will connect at a time that is set
  uint64_t given_up = 0;    // ... that never will again, because of how their stream ended
  uint64_t lost = 0;        // attempts and streams that failed or ended without a leave
  uint64_t left = 0;        // streams that ended with a leave
  uint64_t told = 0;        // Reconnects received
  uint64_t reconnects = 0;  // times that somebody went to wait for a connection that isn't the first
  uint64_t received = 0, sent = 0, cancelled = 0;
  uint64_t pings = 0, pinged = 0;  // HTTP/2 pings of our own, and of the server
  uint64_t bytes_in = 0, bytes_out = 0;
  std::map<std::string, uint64_t> ends;  // why streams ended that should not have

  void ended_badly(const std::string& why) {
    lost++;
    const std::string reason = why.empty() ? "grpc-status 0 or unreadable" : why;
    if (ends.size() < 16 || ends.count(reason)) ends[reason]++;
  }

  void print(FILE* to, uint32_t participants, double seconds, double cpu) const {
    std::string line = "{\"participants\": " + std::to_string(participants);
    const std::pair<const char*, uint64_t> numbers[] = {
        {"connected", connected}, {"open", open}, {"waiting", waiting}, {"given_up", given_up}, {"lost", lost},
        {"left", left}, {"told", told}, {"reconnects", reconnects}, {"received", received}, {"sent", sent},
        {"cancelled", cancelled}, {"pings", pings}, {"pinged", pinged}, {"bytes_in", bytes_in},
        {"bytes_out", bytes_out}};
    for (const auto& [name, value] : numbers) line += std::string(", \"") + name + "\": " + std::to_string(value);
    char times[128];
    std::snprintf(times, sizeof times, ", \"seconds\": %.6f, \"cpu_seconds\": %.6f, \"cpu_seconds_per_1000\": %.6f",
                  seconds, cpu, sent ? cpu * 1000 / double(sent) : 0.0);
    std::fprintf(to, "%s%s, \"ends\": {%s}}\n", line.c_str(), times, ends_as_json().c_str());
    std::fflush(to);
  }

 private:
  std::string ends_as_json() const {
    std::string text;
    for (const auto& [why, times] : ends) {
      text += text.empty() ? "\"" : ", \"";
      for (const char letter : why)
        if (letter == '"' || letter == '\\') {
          text += '\\', text += letter;
        } else {
          text += uint8_t(letter) < 32 || uint8_t(letter) > 126 ? '?' : letter;
        }
      text += "\": " + std::to_string(times);
    }
    return text;
  }
};
