"""A blocking training script with one participant, in one process or over a worker: for latency.py.

Decides only how the participant is reached. The caller is the same in both cases: a thread that calls
``proxy.run`` in a loop, as a training script would.

    python -m benchmarks.one_caller --manager single --calls 1000

Prints JSON lines: when it listens, and after the calls how long each took.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from benchmarks.meter import say
from coordinator import Coordinator, ParticipantProxy, instruction
from manager import create_participant_manager
from manager.api.participants import Participants


def call(manager: Participants[ParticipantProxy], args: argparse.Namespace, ready: dict[str, Any]) -> None:
    say({**ready, "pid": os.getpid()})
    (proxy,) = manager.get_participants(1, timeout=args.timeout)
    message = instruction("echo", payload=bytes(args.instruction_size))
    began = time.monotonic()
    while time.monotonic() < began + args.warm_up:
        proxy.run(message, timeout=args.timeout)
    seconds = []
    for _ in range(args.calls):
        called = time.perf_counter()
        proxy.run(message, timeout=args.timeout)
        seconds.append(time.perf_counter() - called)
    say({"microseconds": [round(1e6 * s, 1) for s in seconds]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--manager", choices=["single", "coordinator"], default="single")
    parser.add_argument("--workers", type=int, default=1, help="of the coordinator")
    parser.add_argument("--instruction-size", type=int, default=100, help="bytes of payload")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--warm-up", type=float, default=0.5, help="seconds of calls that aren't told")
    parser.add_argument("--timeout", type=float, default=30, help="seconds for the participant, and a call")
    args = parser.parse_args()
    if args.manager == "single":
        server, manager = create_participant_manager(ParticipantProxy, listen="127.0.0.1:0")
        with server:
            call(manager, args, {"listen": server.address})
    else:
        with Coordinator[ParticipantProxy](workers=args.workers, listen="127.0.0.1:0") as coordinator:
            call(coordinator, args, {"listen": coordinator.listen})


if __name__ == "__main__":
    main()
