// When each round of instructions came and was answered: where the time of a call to all of them goes.
//
// Decides what a round is: as many instructions as there are participants. That is right only where every call goes
// to all of them and none is lost. Times are those of CLOCK_MONOTONIC, so that they can be compared with the
// caller's.

#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

class Rounds {
 public:
  explicit Rounds(uint64_t participants) : participants_(participants) {}

  void received(uint64_t more) { count(received_, more, &Round::first_in, &Round::last_in); }
  void sent(uint64_t more) { count(sent_, more, &Round::first_out, &Round::last_out); }

  // The rounds that are over: when the first and the last instruction came, and the first and the last answer had
  // gone out.
  std::string json() const {
    std::string text = "{\"rounds\": [";
    for (uint64_t i = 0; i < rounds_.size() && i < sent_ / participants_; i++) {
      const Round& round = rounds_[i];
      char line[128];
      std::snprintf(line, sizeof line, "%s[%.6f, %.6f, %.6f, %.6f]", i ? ", " : "", round.first_in, round.last_in,
                    round.first_out, round.last_out);
      text += line;
    }
    return text + "]}";
  }

 private:
  struct Round {
    double first_in, last_in, first_out, last_out;
  };

  static constexpr size_t kMost = 20000;  // later rounds are only counted

  void count(uint64_t& counter, uint64_t more, double Round::*first, double Round::*last) {
    if (more == 0) return;
    const double now = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    for (; more > 0; more--, counter++) {
      const uint64_t round = counter / participants_;
      if (round >= kMost) continue;
      if (round >= rounds_.size()) rounds_.resize(round + 1);
      if (counter % participants_ == 0) rounds_[round].*first = now;
      if (counter % participants_ == participants_ - 1) rounds_[round].*last = now;
    }
  }

  uint64_t participants_, received_ = 0, sent_ = 0;
  std::vector<Round> rounds_;
};
