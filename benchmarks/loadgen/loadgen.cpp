// A load generator for Muster: N participants in one thread, each with a TCP connection of its own.
//
// It costs so little (about 0.01 CPU seconds per 1,000 round trips) that a measurement shows the server and not
// its client, because it speaks HTTP/2 and gRPC itself, on raw sockets, and only as far as needed. What it speaks
// and what not is said in http2.h; what a participant answers in participant.h, when it comes back in comeback.h; the
// messages' bytes in wire.h and, for Flower's server, in flower.h; the options in options.h; what is counted in
// counts.h. This file decides about sockets and time.
//
// stdout: JSON, one line at the start (signals are heard from then on), one per SIGUSR1 and one at the end.
// stderr: a line per second (--verbose).
// Build: g++ -std=c++17 -O2 -o loadgen loadgen.cpp    (Linux: epoll, signalfd)

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <deque>
#include <optional>
#include <queue>
#include <random>
#include <utility>

#include "comeback.h"
#include "counts.h"
#include "options.h"
#include "participant.h"
#include "rounds.h"

namespace {

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;

Clock::duration seconds(double value) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(value));
}

double in_seconds(Clock::duration value) { return std::chrono::duration<double>(value).count(); }

class Loadgen {
 public:
  Loadgen(const Options& options, const Script& script) : options_(options), script_(script), random_(options.seed) {
    addrinfo hints{}, *found = nullptr;
    hints.ai_family = AF_INET, hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(options.host.c_str(), nullptr, &hints, &found) != 0)
      throw std::runtime_error("unknown host " + options.host);
    server_ = *reinterpret_cast<sockaddr_in*>(found->ai_addr);
    server_.sin_port = htons(options.port);
    freeaddrinfo(found);

    rlimit files{};
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_cur < options.participants + 16)
      throw std::runtime_error("only " + std::to_string(files.rlim_cur) + " files may be open (ulimit -n)");

    if (options.round_times) rounds_.emplace(options.participants);
    sigset_t signals;
    sigemptyset(&signals);
    for (const int signal : {SIGTERM, SIGINT, SIGUSR1}) sigaddset(&signals, signal);
    sigprocmask(SIG_BLOCK, &signals, nullptr);
    signal_fd_ = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
    epoll_ = epoll_create1(EPOLL_CLOEXEC);
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u32 = kSignals;
    epoll_ctl(epoll_, EPOLL_CTL_ADD, signal_fd_, &event);

    for (uint32_t i = 0; i < options.participants; i++) participants_.emplace_back(script, i);
  }

  void run() {
    started_ = Clock::now();
    print(stdout);
    counts_.waiting = options_.participants;
    for (uint32_t i = 0; i < options_.participants; i++)
      at(started_ + seconds(options_.connect_rate > 0 ? i / options_.connect_rate : 0), Timer::kConnect, i);
    if (options_.duration > 0) at(started_ + seconds(options_.duration), Timer::kStop, 0);
    if (options_.verbose) at(started_ + seconds(1), Timer::kReport, 0);
    while (!stopping_ || (counts_.open > 0 && options_.leave && Clock::now() < grace_)) step();
  }

  void print_rounds() const {
    if (rounds_) std::fprintf(stdout, "%s\n", rounds_->json().c_str());
  }

  void print(FILE* to) const {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const auto in = [](const timeval& t) { return double(t.tv_sec) + 1e-6 * double(t.tv_usec); };
    const double cpu = in(usage.ru_utime) + in(usage.ru_stime), elapsed = in_seconds(Clock::now() - started_);
    counts_.print(to, options_.participants, elapsed, cpu);
  }

 private:
  struct Timer {
    enum What { kConnect, kAnswer, kPing, kEndNow, kStop, kReport };
    Time when;
    What what;
    uint32_t participant, generation, connections;
    bool operator<(const Timer& other) const { return when > other.when; }  // the queue's top is the earliest
  };

  static constexpr uint32_t kSignals = UINT32_MAX;

  void at(Time when, Timer::What what, uint32_t index) {
    timers_.push({when, what, index, participants_[index].generation, participants_[index].connections});
  }

  void step() {
    int wait_ms = stopping_ ? 50 : -1;
    if (!timers_.empty()) {
      const double wait = in_seconds(timers_.top().when - Clock::now()) * 1000;
      const int until_timer = wait <= 0 ? 0 : int(std::min(wait, 1e6)) + 1;  // epoll counts whole milliseconds
      wait_ms = wait_ms < 0 ? until_timer : std::min(wait_ms, until_timer);
    }
    epoll_event events[512];
    const int ready = epoll_wait(epoll_, events, 512, wait_ms);
    for (int i = 0; i < ready; i++) {
      if (events[i].data.u32 == kSignals)
        signalled();
      else
        socket_ready(events[i].data.u32, events[i].events);
    }
    const Time now = Clock::now();
    while (!timers_.empty() && timers_.top().when <= now) {
      const Timer timer = timers_.top();
      timers_.pop();
      due(timer, now);
    }
  }

  void due(const Timer& timer, Time now) {
    Participant& participant = participants_[timer.participant];
    switch (timer.what) {
      case Timer::kStop:
        return stop();
      case Timer::kReport:
        print(stderr);
        return at(now + seconds(1), Timer::kReport, 0);
      case Timer::kConnect:
        counts_.waiting--;
        if (participant.state == Participant::State::kAbsent && !stopping_) connect(timer.participant);
        return;
      case Timer::kPing:
        if (participant.connections == timer.connections && participant.state == Participant::State::kOpen)
          keep_alive(timer.participant, now);
        return;
      case Timer::kEndNow:
        if (participant.connections == timer.connections && participant.state == Participant::State::kOpen)
          gone(timer.participant, "");
        return;
      case Timer::kAnswer:
        if (participant.generation != timer.generation || participant.state != Participant::State::kOpen) return;
        participant.send_answer();
        return flush(timer.participant);
    }
  }

  void signalled() {
    signalfd_siginfo info;
    while (read(signal_fd_, &info, sizeof info) == ssize_t(sizeof info)) {
      if (info.ssi_signo == SIGUSR1)
        print(stdout);
      else
        stop();
    }
  }

  void stop() {
    if (stopping_) return;
    stopping_ = true;
    grace_ = Clock::now() + seconds(5);
    if (!options_.leave) return;
    for (uint32_t i = 0; i < participants_.size(); i++)
      if (participants_[i].state == Participant::State::kOpen) {
        participants_[i].leave();
        flush(i);
      }
  }

  void connect(uint32_t index) {
    Participant& participant = participants_[index];
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return gone(index, std::strerror(errno));
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    participant.fd = fd;
    participant.generation++, participant.connections++;
    participant.state = Participant::State::kConnecting;
    participant.wants_to_write = true;
    if (options_.source_addresses > 0) {
      // The port is chosen at connect(), so that each pair of addresses has all ports to itself.
      setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
      sockaddr_in source{};
      source.sin_family = AF_INET;
      source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + index % options_.source_addresses);
      if (bind(fd, reinterpret_cast<sockaddr*>(&source), sizeof source) < 0) return gone(index, std::strerror(errno));
    }
    // An address that it was told counts for one attempt.
    const sockaddr_in to = comeback::elsewhere(std::exchange(participant.come_back_to, {})).value_or(server_);
    if (::connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) < 0 && errno != EINPROGRESS)
      return gone(index, std::strerror(errno));
    epoll_event event{};
    event.events = EPOLLIN | EPOLLOUT;
    event.data.u32 = index;
    epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event);
  }

  void socket_ready(uint32_t index, uint32_t events) {
    Participant& participant = participants_[index];
    if (participant.state == Participant::State::kAbsent) return;
    if (participant.state == Participant::State::kConnecting) {
      int error = 0;
      socklen_t size = sizeof error;
      getsockopt(participant.fd, SOL_SOCKET, SO_ERROR, &error, &size);
      if (error != 0) return gone(index, std::strerror(error));
      participant.open();
      counts_.connected++, counts_.open++;
      participant.opened_at = participant.heard_at = Clock::now();
      if (options_.ping_seconds > 0) at(participant.heard_at + seconds(options_.ping_seconds), Timer::kPing, index);
      if (stopping_ && options_.leave) participant.leave();
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
      // One read: epoll reports again if there is more than the buffer holds.
      const ssize_t size = recv(participant.fd, buffer_, sizeof buffer_, 0);
      if (size == 0) return gone(index, "the server closed the connection");
      if (size < 0 && errno != EAGAIN) return gone(index, std::strerror(errno));
      if (size > 0) {
        counts_.bytes_in += uint64_t(size);
        const uint64_t pinged = participant.connection->pinged();
        if (options_.ping_seconds > 0) participant.heard_at = Clock::now();
        participant.connection->receive(buffer_, size_t(size));
        counts_.pinged += participant.connection->pinged() - pinged;
        const uint64_t messages = std::exchange(participant.messages, 0);
        counts_.received += messages;
        if (rounds_) rounds_->received(messages);
        counts_.cancelled += std::exchange(participant.cancelled, 0);
        if (const uint64_t told = std::exchange(participant.told, 0)) {
          counts_.told += told;
          at(Clock::now() + seconds(comeback::kPatience), Timer::kEndNow, index);
        }
        if (participant.connection->over()) return gone(index, participant.end_reason);
        if (participant.answer && !participant.thinking) answer(index);
      }
    }
    flush(index);
  }

  // The participant has an answer: it goes out now, or when it has thought.
  void answer(uint32_t index) {
    Participant& participant = participants_[index];
    if (options_.think_seconds <= 0) return participant.send_answer();
    double think = options_.think_seconds;
    if (options_.think_exponential) think = std::exponential_distribution<>(1 / think)(random_);
    participant.thinking = true;
    at(Clock::now() + seconds(think), Timer::kAnswer, index);
  }

  void flush(uint32_t index) {
    Participant& participant = participants_[index];
    http2::Connection& connection = *participant.connection;
    const uint64_t sent_before = connection.sent();
    bool full = false;
    iovec* parts;
    while (const int count = connection.gather(parts)) {
      msghdr message{};
      message.msg_iov = parts, message.msg_iovlen = size_t(count);
      const ssize_t size = sendmsg(participant.fd, &message, MSG_NOSIGNAL);
      if (size < 0) {
        if (errno != EAGAIN) return gone(index, std::strerror(errno));
        full = true;
        break;
      }
      counts_.bytes_out += uint64_t(size);
      connection.written(size_t(size));
    }
    const uint64_t sent = connection.sent() - sent_before;
    counts_.sent += sent;
    if (rounds_) rounds_->sent(sent);
    if (participant.hang_up && connection.idle()) {
      participant.hang_up = false;
      shutdown(participant.fd, SHUT_WR);  // the server closes its side, which ends the participant
    }
    if (full != participant.wants_to_write) {
      participant.wants_to_write = full;
      epoll_event event{};
      event.events = full ? EPOLLIN | EPOLLOUT : EPOLLIN;
      event.data.u32 = index;
      epoll_ctl(epoll_, EPOLL_CTL_MOD, participant.fd, &event);
    }
  }

  // Nothing was heard of the server for long enough, or there might have been: asks, or gives it up.
  void keep_alive(uint32_t index, Time now) {
    Participant& participant = participants_[index];
    const Clock::duration limit = seconds(options_.ping_seconds);
    if (participant.pinged_at > participant.heard_at) return gone(index, "the server doesn't answer pings");
    if (now - participant.heard_at < limit) return at(participant.heard_at + limit, Timer::kPing, index);
    participant.pinged_at = now;
    participant.connection->ping();
    counts_.pings++;
    at(now + limit / 2, Timer::kPing, index);
    flush(index);
  }

  // After how many seconds one comes back whose stream is over; nothing: never.
  std::optional<double> comes_back(Participant& participant, bool was_open, const std::string& why) {
    const double random = std::uniform_real_distribution<>()(random_);
    if (was_open && participant.leaving) {
      if (participant.reconnect_after < 0) return std::nullopt;
      return participant.reconnect_after > 0 ? participant.reconnect_after : comeback::Backoff().next(random);
    }
    if (!options_.reconnect) {
      if (options_.reconnect_seconds < 0) return std::nullopt;
      return options_.reconnect_seconds;
    }
    if (comeback::is_final(why)) return std::nullopt;
    const bool lasted = Clock::now() - participant.opened_at >= seconds(comeback::kLasted);
    if (was_open && (lasted || participant.brought_message)) participant.backoff.reset();
    return participant.backoff.next(random);
  }

  // The participant's connection is over, for whatever reason.
  void gone(uint32_t index, const std::string& why) {
    Participant& participant = participants_[index];
    if (participant.fd >= 0) close(participant.fd);
    participant.fd = -1;
    const bool was_open = participant.state == Participant::State::kOpen;
    participant.state = Participant::State::kAbsent;
    counts_.open -= was_open;
    if (was_open && participant.leaving)
      counts_.left++;
    else
      counts_.ended_badly(why);
    if (stopping_) return;
    const std::optional<double> back = comes_back(participant, was_open, why);
    if (!back) {
      counts_.given_up++;
      return;
    }
    counts_.reconnects++, counts_.waiting++;
    at(Clock::now() + seconds(*back), Timer::kConnect, index);
  }

  const Options& options_;
  const Script& script_;
  sockaddr_in server_{};
  int epoll_ = -1, signal_fd_ = -1;
  bool stopping_ = false;
  Time started_, grace_;
  std::deque<Participant> participants_;
  std::priority_queue<Timer> timers_;
  std::mt19937 random_;
  Counts counts_;
  std::optional<Rounds> rounds_;
  char buffer_[256 * 1024];
};

}  // namespace

int main(int argc, char** argv) {
  Options options;
  Script script;
  read_options(argc, argv, options, script);
  try {
    const auto loadgen = std::make_unique<Loadgen>(options, script);
    loadgen->run();
    loadgen->print_rounds();
    loadgen->print(stdout);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "loadgen: %s\n", error.what());
    return 1;
  }
}
