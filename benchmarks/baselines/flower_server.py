"""Flower's server with FedAvg over its grpc-bidi transport: what Muster's reduce is set beside.

Decides nothing about Flower but its settings: all clients in every round, no evaluation, no time limit. Runs
in an environment of its own that has flwr (flower.py makes it), hence no import from our packages.

    benchmarks/build/flower-VERSION/bin/python -m benchmarks.baselines.flower_server --participants 200

Prints a JSON line when it listens, one every ``--report-every`` rounds, and one when it stops (SIGTERM). With
``--check`` it plays three rounds with all kinds of messages, says whether the answers were right, and ends.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import threading
import time
from typing import Any

from benchmarks.meter import Meter, say, say_listening

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before flwr is imported: nothing is to leave this machine

CHECKED_ROUNDS = 3


class Rounds:
    """The hooks that FedAvg calls once in every round: they count, and look at what came."""

    def __init__(self, participants: int, report_every: int) -> None:
        self._participants = participants
        self._report_every = report_every
        self._meter: Meter | None = None
        self.count = 0
        self.evaluations = 0
        self.right = True

    def begin(self, _round: int) -> dict[str, Any]:
        """Config of the instructions: none."""
        if self._meter is None:
            self._meter = Meter(0)
            # Now, because start_server sets handlers of its own; here, for it runs this in the main thread.
            signal.signal(signal.SIGTERM, lambda *_: self._stop())
        return {}

    def end(self, metrics: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
        """The weighted mean of the clients' metrics, as Flower's tutorials do it."""
        self.count += 1
        if len(metrics) != self._participants:
            say({"error": f"only {len(metrics)} of {self._participants} clients gave a result"})
            os._exit(1)
        examples = sum(number for number, _ in metrics)
        loss = sum(number * float(values["loss"]) for number, values in metrics) / examples
        self.right &= loss == 0.5
        if self._report_every and self.count % self._report_every == 0:
            say({"rounds": self.count, "loss": loss})
        return {"loss": loss}

    def evaluated(self, metrics: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
        self.evaluations += len(metrics)
        self.right &= all(number == 1 and values == {"loss": 0.5} for number, values in metrics)
        return {}

    def _stop(self) -> None:
        assert self._meter is not None  # noqa: S101
        say(self._meter.report(self.count * self._participants))
        os._exit(0)  # its threads are parked


def free_port() -> int:
    """One that nobody uses now: start_server doesn't tell which one port 0 became."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
        return port


def say_when_listening(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return say_listening(f"127.0.0.1:{port}")
    return None


def check(server: Any, history: Any, rounds: Rounds, participants: int, tensor_bytes: int) -> dict[str, Any]:
    """Whether everything came as the load generator is meant to send it."""
    import numpy as np
    from flwr.common import parameters_to_ndarrays  # type: ignore[import-not-found, unused-ignore]

    arrays = parameters_to_ndarrays(server.parameters)
    return {
        "metrics": rounds.right and rounds.count == CHECKED_ROUNDS,
        "evaluations": rounds.evaluations == CHECKED_ROUNDS * participants,
        "losses": history.losses_distributed == [(i + 1, 0.5) for i in range(CHECKED_ROUNDS)],
        "model": len(arrays) == 1
        and arrays[0].dtype == np.float32
        and arrays[0].shape == (tensor_bytes // 4,)
        and bool(np.allclose(arrays[0], 1)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--participants", type=int, default=200, help="all of them, in every round")
    parser.add_argument("--tensor-bytes", type=int, default=100, help="size of the model, for --check")
    parser.add_argument("--report-every", type=int, default=0, help="rounds; 0: never")
    parser.add_argument("--max-workers", type=int, help="threads that call clients; Flower's own default")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()

    from flwr.server import Server, ServerConfig, SimpleClientManager, start_server  # type: ignore[import-not-found, unused-ignore]
    from flwr.server.strategy import FedAvg  # type: ignore[import-not-found, unused-ignore]

    logging.getLogger("flwr").setLevel(logging.ERROR)  # a few lines per round would cost it CPU time
    rounds = Rounds(args.participants, args.report_every)
    strategy = FedAvg(
        fraction_fit=1.0,
        fraction_evaluate=1.0 if args.check else 0.0,
        min_fit_clients=args.participants,
        min_evaluate_clients=args.participants,
        min_available_clients=args.participants,
        on_fit_config_fn=rounds.begin,
        fit_metrics_aggregation_fn=rounds.end,
        evaluate_metrics_aggregation_fn=rounds.evaluated,
    )
    server = Server(client_manager=SimpleClientManager(), strategy=strategy)
    server.set_max_workers(args.max_workers)
    port = args.port or free_port()
    threading.Thread(target=say_when_listening, args=[port], daemon=True).start()
    history = start_server(
        server_address=f"127.0.0.1:{port}",
        server=server,
        config=ServerConfig(num_rounds=CHECKED_ROUNDS if args.check else 10**9),
    )
    if args.check:
        say(check(server, history, rounds, args.participants, args.tensor_bytes))
        os._exit(0)


if __name__ == "__main__":
    main()
