"""How long until a fault is noticed, and until all is as before: worker, coordinator, connections, crowds.

Decides the scenes, what *detected* and *recovered* mean in each, and the targets. The participants are the
load generator's, with --reconnect: they come back as PROTOCOL.md, A.10 wants it. Times are from the fault on,
as seen through the control port (cluster.py). How to measure is measure.py's.

    python -m benchmarks.recovery                        # all scenes
    python -m benchmarks.recovery killed stopped --repetitions 100
    python -m benchmarks.recovery crowd --crowd 5000

Exits with 1 if a target was missed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.cluster import Cluster, is_whole, offered_options, spread
from benchmarks.half_open import FreezingProxy
from benchmarks.measure import (
    Bench,
    Child,
    MeasurementError,
    Report,
    build_loadgen,
    counts,
    cpu_seconds,
    print_table,
    wait_until,
    write_results,
)
from benchmarks.series import Scene, Series

LIVENESS = 3.0 + 0.5 + 0.25
"""Seconds of silence after which a worker counts as dead; its heartbeat; how often the coordinator looks."""

KEEPALIVE = 10.0 + 5.0
"""Seconds: a ping after so long without data, and the time for its answer."""

SLACK = 0.5
"""Seconds that two busy cores may add to times that come from the settings."""

UNEVEN = 1.3
"""No worker may have more than so many times the mean."""


def participants(bench: Bench, cluster: Cluster, count: int, *options: object, at: str = "") -> Child:
    """Of whom all are pooled when this returns, besides those that were."""
    before = cluster.look().participants
    seed = random.randrange(2**32)
    load = bench.loadgen(at or cluster.listen, count, "--seed", seed, *options)
    cluster.wait_until_whole(before + count, 60)
    return load


def worker_fault(args: argparse.Namespace, number: signal.Signals, detect: float, recover: float) -> Scene:
    """Each worker of a cluster gets the signal once, one after the other; then comes a new cluster.

    A slot's second death in a row is followed by a wait (coordinator/workers/restarts.py), which isn't meant
    here. Nor are the longer waits of participants who lose their streams twice within seconds (A.10): only
    the first kill in each cluster counts for the pool.
    """
    name = number.name
    detected = Series(f"{name} to a worker: its participants are lost", detect)
    back = Series(f"{name} to a worker: its slot is up again", recover)
    whole = Series(f"{name} to a worker: {args.participants} participants pooled again")
    scene = Scene([detected, back, whole])
    while len(back.seconds) < args.repetitions:
        with Bench(300) as bench, Cluster(bench, args.workers) as cluster:
            load = participants(bench, cluster, args.participants, "--reconnect", "--id-prefix", "device-")
            for index in range(min(args.workers, args.repetitions - len(back.seconds))):
                time.sleep(random.uniform(0.3, 0.8))  # somewhere between two heartbeats
                victim = cluster.look().workers[index]
                began = time.monotonic()
                os.kill(victim.pid, number)
                when, _ = cluster.when("detected", partial(_is_lost, victim), 30)
                detected.seconds.append(when - began)
                when, _ = cluster.when("up", partial(_is_next, victim), 60)
                back.seconds.append(when - began)
                when, _ = cluster.wait_until_whole(args.participants, 60)
                whole.seconds += [] if index else [when - began]
            _check_load(load, args.participants, scene)
    return scene


def _is_lost(victim: Any, status: Any) -> bool:
    """Whether the worker that is in this slot now has nothing of the one that was."""
    worker = status.workers[victim.index]
    return bool(worker.incarnation != victim.incarnation or worker.participants == 0)


def _is_next(victim: Any, status: Any) -> bool:
    worker = status.workers[victim.index]
    return bool(worker.incarnation > victim.incarnation and worker.state == "up")


def _check_load(load: Child, expected: int, scene: Scene) -> None:
    now = wait_until(load, "settled", lambda c: c["open"] + c["given_up"] == expected, 20)
    if now["given_up"] or now["open"] != expected:
        scene.notes.append(
            f"of {expected} participants {now['open']} are connected at the end, and {now['given_up']} gave "
            f"up: {now['ends']}"
        )


def killed(args: argparse.Namespace) -> Scene:
    return worker_fault(args, signal.SIGKILL, detect=1.0, recover=3.0)


def stopped(args: argparse.Namespace) -> Scene:
    # It is killed within a second of its detection; a new one boots.
    return worker_fault(args, signal.SIGSTOP, detect=LIVENESS + SLACK, recover=LIVENESS + 1 + 3)


def restarted(args: argparse.Namespace) -> Scene:
    """The coordinator is killed and started again, over and over."""
    whole = Series("SIGKILL to the coordinator: the pool is whole, from its start on", 2.0)
    answers = Series("... of which until the control port answers")
    cpu = Series("... CPU time of the new coordinator until then")
    scene = Scene([whole, answers, cpu])
    with Bench(60 + 40 * args.repetitions) as bench, Cluster(bench, args.workers) as cluster:
        if not (cluster.run_dir / "state.json").exists():
            return Scene(
                notes=["restarted: left out, this coordinator doesn't adopt workers (no state.json)"]
            )
        load = participants(bench, cluster, args.participants, "--reconnect", "--id-prefix", "device-")
        before = cluster.worker_pids()
        for _ in range(args.repetitions):
            cluster.kill()
            time.sleep(random.uniform(0.2, 1.5))
            began = time.monotonic()
            cluster.start()
            try:
                when, _ = cluster.when("answering", lambda _: True, 30)
                answers.seconds.append(when - began)
                cpu.seconds.append(cpu_seconds([cluster.pid]))
                when, _ = cluster.wait_until_whole(args.participants, 30)
            except MeasurementError as error:
                whole.missing += 1
                scene.notes.append(f"restarted: {error}")
                break
            whole.seconds.append(when - began)
        after, load_counts = cluster.worker_pids(), counts(load)
        scene.details = {"lost_streams": load_counts["lost"], "told": load_counts["told"]}
        if load_counts["lost"] or load_counts["told"]:
            scene.notes.append(f"restarted: streams were cut or moved: {load_counts}")
        if after != before:
            scene.notes.append(f"restarted: the workers were {before}, and are {after}")
    return scene


def half_open(args: argparse.Namespace) -> Scene:
    """Participants behind a proxy that stops forwarding, half of whom ping the server, too, and come back."""
    count = args.participants // 2
    detected = Series("half-open, participant silent: lost at the coordinator", KEEPALIVE + SLACK)
    noticed = Series("half-open, participant pings: it connects again", KEEPALIVE + 1 + SLACK)
    scene = Scene([detected, noticed])
    with Bench(180) as bench, Cluster(bench, args.workers) as cluster, FreezingProxy(cluster.listen) as proxy:
        # As far apart as pings are, so that these come at any time after the freeze.
        slowly: list[object] = ["--connect-rate", count / 10]
        bench.loadgen(proxy.address, count, "--id-prefix", "silent-", *slowly)
        pinging: list[object] = ["--reconnect", "--ping-seconds", 10, "--id-prefix", "alive-"]
        alive = bench.loadgen(proxy.address, count, *pinging, *slowly)
        bench.loadgen(cluster.listen, count, "--id-prefix", "direct-")
        cluster.wait_until_whole(3 * count, 60)
        time.sleep(args.settle)
        proxy.freeze()
        began = time.monotonic()
        curve: list[Report] = []
        while (seconds := time.monotonic() - began) < KEEPALIVE + 15:
            names, back = cluster.names(), counts(alive)["connected"] - count
            silent = sum(name.startswith("silent-") for name in names)
            detected.seconds += [seconds] * (count - silent - len(detected.seconds))
            noticed.seconds += [seconds] * (back - len(noticed.seconds))
            if not curve or seconds - curve[-1]["seconds"] >= 1:
                curve.append(
                    {"seconds": round(seconds, 2), "silent": silent, "pooled": len(names), "back": back}
                )
            if silent == 0 and back >= count and len(names) == 2 * count:
                break
            time.sleep(0.05)
        detected.missing, noticed.missing = count - len(detected.seconds), count - len(noticed.seconds)
        if len(cluster.names()) != 2 * count:
            scene.notes.append(f"half-open: {len(cluster.names())} are pooled at the end, not {2 * count}")
        scene.details = {"curve": curve}
    return scene


def crowd(args: argparse.Namespace) -> Scene:
    """One worker of a few with thousands of participants is killed: until all are back, and evenly spread."""
    whole = Series(f"SIGKILL to 1 of {args.workers} workers: all {args.crowd:,} pooled again", 10.0)
    even = Series(f"... and no worker has more than {UNEVEN:g} times the mean")
    scene = Scene([whole, even], details={"curves": []})
    for repetition in range(args.crowd_repetitions):
        with Bench(120 + args.limit) as bench, Cluster(bench, args.workers) as cluster:
            load = participants(bench, cluster, args.crowd, "--reconnect", "--id-prefix", "crowd-")
            time.sleep(args.settle)
            index = repetition % args.workers
            began = time.monotonic()
            os.kill(cluster.look().workers[index].pid, signal.SIGKILL)
            curve, least = _curve(cluster, load, args, began, whole, even)
            scene.notes.append(
                f"crowd: {curve[-1]['told']:,} times one was told to move; meanwhile at least {least:,} were "
                f"pooled"
            )
            scene.details["curves"].append(curve)
            _check_load(load, args.crowd, scene)
            told = [
                point for last, point in zip([{}, *curve], curve, strict=False) if _pool(point) != _pool(last)
            ]
            rows = [[f"{point[k]}" for k in curve[0]] for point in told]
            print_table(f"crowd, repetition {repetition + 1}, whenever it changed", list(curve[0]), rows)
    if even.missing:
        scene.notes.append(f"crowd: {even.missing} times the workers were not even after {args.limit:g} s")
    return scene


def _pool(point: Report) -> Any:
    return point.get("by worker"), point.get("open")


def _curve(
    cluster: Cluster, load: Child, args: argparse.Namespace, began: float, whole: Series, even: Series
) -> tuple[list[Report], int]:
    """Second by second until all are pooled and evenly spread, or time is up.

    And how many were pooled at least, once all had been.
    """
    curve: list[Report] = []
    least = args.crowd
    whole_at = even_at = None
    gone = False
    while True:
        status, seconds = cluster.look(), time.monotonic() - began
        if status is not None:
            gone = gone or status.participants < args.crowd
            least = min(least, status.participants) if whole_at else args.crowd
            if gone and is_whole(status, args.crowd):
                whole_at = whole_at or seconds
                even_at = seconds if max(spread(status)) <= UNEVEN * statistics.mean(spread(status)) else None
        over = even_at is not None or seconds > args.limit
        if not curve or seconds >= curve[-1]["seconds"] + 1 or over:
            now = counts(load)
            curve.append(
                {
                    "seconds": round(seconds, 2),
                    "pooled": status and status.participants,
                    "by worker": status and spread(status),
                    **{name: now[name] for name in ("open", "waiting", "lost", "told")},
                }
            )
        if over:
            break
        time.sleep(0.05)
    for series, at in ((whole, whole_at), (even, even_at)):
        series.missing += at is None
        series.seconds += [] if at is None else [at]
    return curve, least


def herd(args: argparse.Namespace) -> Scene:
    """Thousands come at once to a cluster that takes some of them, and so many per second."""
    wanted = {"--max-participants": args.herd_fits, "--max-joins": args.herd_joins, "--come-back": "1-5"}
    offered = offered_options()
    if missing := [name for name in wanted if name not in offered]:
        return Scene(notes=[f"herd: left out, `coordinator start` has no {', '.join(missing)} yet"])
    options = [part for pair in wanted.items() for part in pair]
    full = Series(f"a herd of {args.herd:,}: all {args.herd_fits:,} that fit are pooled")
    scene = Scene([full])
    with Bench(120 + args.limit) as bench, Cluster(bench, 2, *options) as cluster:
        began = time.monotonic()
        load = bench.loadgen(cluster.listen, args.herd, "--reconnect", "--id-prefix", "herd-")
        when, status = cluster.when(
            "full", lambda now: now.participants >= args.herd_fits, args.limit, pause=0.05
        )
        full.seconds.append(when - began)
        most = 0
        while time.monotonic() < when + args.settle:
            most = max(most, cluster.look().participants)
            time.sleep(0.05)
        now = wait_until(load, "settled", lambda c: c["open"] + c["waiting"] >= args.herd, args.limit)
        scene.details = {"load": now, "pooled": most, "spread": spread(status)}
        scene.notes.append(
            f"herd: {now['told']} times somebody was told to come back, {now['lost']} attempts or streams "
            f"were lost without a hint, {now['given_up']} gave up; at most {most:,} were pooled, "
            f"{spread(status)}"
        )
        full.missing += bool(now["given_up"] or now["lost"] or most > args.herd_fits)
    return scene


SCENES: dict[str, Callable[[argparse.Namespace], Scene]] = {
    "killed": killed,
    "stopped": stopped,
    "restarted": restarted,
    "half-open": half_open,
    "crowd": crowd,
    "herd": herd,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scenes", nargs="*", metavar="SCENE", help=f"of {', '.join(SCENES)}; all if none")
    parser.add_argument(
        "--repetitions", type=int, default=30, help="of each fault of a worker or coordinator"
    )
    parser.add_argument("--participants", type=int, default=300, help="where it isn't about crowds")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--crowd", type=int, default=5000)
    parser.add_argument("--crowd-repetitions", type=int, default=3)
    parser.add_argument("--herd", type=int, default=2000)
    parser.add_argument("--herd-fits", type=int, default=1500)
    parser.add_argument("--herd-joins", type=int, default=100, help="per second and worker")
    parser.add_argument("--settle", type=float, default=2, help="seconds from pooled to the fault")
    parser.add_argument("--limit", type=float, default=40, help="seconds until a crowd has to be back")
    args = parser.parse_args()
    if unknown := set(args.scenes) - set(SCENES):
        parser.error(f"there is no scene {', '.join(sorted(unknown))}; there are {', '.join(SCENES)}")
    found: dict[str, Scene] = {}
    try:
        build_loadgen()
        for name in args.scenes or SCENES:
            print(name, file=sys.stderr)
            found[name] = SCENES[name](args)
    except MeasurementError as error:
        sys.exit("\n".join([str(error), *getattr(error, "__notes__", [])]))
    series = [each for scene in found.values() for each in scene.series]
    print_table(
        f"Seconds from the fault on; {args.workers} workers",
        ["", "times", "p50", "p99", "worst", "target"],
        [each.row() for each in series],
    )
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    print(f"load average (1, 5, 15 minutes): {load}; {os.cpu_count()} cores")
    notes = [note for scene in found.values() for note in scene.notes]
    print("\n".join(notes))
    results = {
        name: {"series": [s.as_json() for s in scene.series], "notes": scene.notes, **scene.details}
        for name, scene in found.items()
    }
    print(write_results("recovery", vars(args), results))
    if missed := [each.what for each in series if each.missed or (each.missing and each.target is None)]:
        sys.exit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
