"""A running coordinator on a terminal: tables, and a live display.

Decides only how it looks; what it shows comes from control_pb2 messages (view.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import timedelta
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from coordinator.commands.view import counted
from manager.core.members import readable
from protos import control_pb2


def show(what: RenderableType) -> None:
    """Prints it."""
    Console().print(what)


class LiveView:
    """A few lines at the bottom of the terminal that stay up to date; log lines scroll by above them."""

    def __init__(self) -> None:
        self._live = Live(console=Console(stderr=True), auto_refresh=False)
        self._load = CpuLoad()

    def update(self, status: control_pb2.Status) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone
            self._live.update(render_status(status, self._load), refresh=True)

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):
            self._live.stop()


class CpuLoad:
    """CPU use of processes between two looks at the same status."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[float, float]] = {}

    def percent(self, pid: int, cpu_seconds: float, at: float) -> float | None:
        """Per cent of one core since the last look; None at the first."""
        before = self._last.get(pid)
        self._last[pid] = (cpu_seconds, at)
        if before is None or at <= before[1]:
            return None
        return max(0.0, 100 * (cpu_seconds - before[0]) / (at - before[1]))


def render_status(status: control_pb2.Status, load: CpuLoad | None = None) -> RenderableType:
    """The status as a table and two lines. With ``load``, CPU use as of late; else CPU seconds so far."""

    def cpu(pid: int, seconds: float) -> str:
        if load is None:
            return f"{seconds:.1f} s"
        percent = load.percent(pid, seconds, status.uptime_seconds)
        return "" if percent is None else f"{percent:.0f} %"

    head = Text.assemble(
        ("Muster ", "bold"),
        f"{status.version}   up {duration(status.uptime_seconds)}",
        ("   draining", "bold yellow") if status.draining else "",
        "\nparticipants at ",  # a line of its own: 80 columns are too few for all of it
        (status.listen, "cyan"),
        "   control at " if status.control else "",
        (status.control, "cyan"),
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("worker")
    table.add_column("state")
    for name in ("participants", "cpu", "memory", "pid", "restarts"):
        table.add_column(name, justify="right")
    colours = {"up": "green", "starting": "yellow", "draining": "yellow", "down": "red", "failed": "bold red"}
    for worker in status.workers:
        table.add_row(
            str(worker.index),
            Text(worker.state, colours.get(worker.state, "")),
            f"{worker.participants:,}",
            cpu(worker.pid, worker.cpu_seconds),
            mebibytes(worker.rss_bytes),
            str(worker.pid),
            str(worker.incarnation - 1),
        )
    table.add_row(
        "coordinator",
        "",
        Text(f"{status.participants:,}", "bold"),
        cpu(status.pid, status.cpu_seconds),
        mebibytes(status.rss_bytes),
        str(status.pid),
    )
    counters = status.counters
    now = [
        f"{status.busy:,} busy",
        f"{status.leased:,} leased",
        f"{status.attached:,} attached",
        f"{status.waiting:,} waiting",
        counted(status.calls, "call") + " running",
    ]
    if status.moving:
        now.append(f"{status.moving:,} moving")
    so_far = [counted(counters.results, "result")]
    for name, count in (
        ("failures", counters.failures),
        ("lost", counters.lost),
        ("timed out", counters.timed_out),
        ("cancelled", counters.cancelled),
        ("late", counters.late),
        ("refused scripts", status.refused_scripts),
        ("link errors", status.link_errors),
    ):
        if count:
            so_far.append(f"{count:,} {name}")
    refused = sorted(status.refused.items(), key=lambda item: (-item[1], item[0]))
    if refused:
        causes = ", ".join(f"{cause} {count:,}" for cause, count in refused)
        so_far.append(f"{sum(status.refused.values()):,} refused ({causes})")
    troubles = [Text(trouble, "bold red") for trouble in status.troubles]
    return Group(head, table, Text(" · ".join(now)), Text(" · ".join(so_far)), *troubles)


def render_participants(participants: Iterable[control_pb2.Participant]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("participant", "worker", "state", "connected", "attributes", "address"):
        table.add_column(name, overflow="fold")
    for participant in participants:
        state = "busy" if participant.busy else "idle"
        table.add_row(
            plain(participant.id),
            str(participant.worker),
            state + (", leased" if participant.leased else ""),
            duration(participant.connected_seconds),
            plain(" ".join(f"{key}={value}" for key, value in sorted(participant.attributes.items()))),
            plain(readable(participant.peer)),
        )
    return table


def plain(text: str) -> Text:
    """What a participant says of itself, as it is: neither markup nor control codes reach the terminal."""
    return Text("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text))


def duration(seconds: float) -> str:
    """Like ``0:03:12``, or ``2 days, 1:00:00``."""
    return str(timedelta(seconds=int(seconds)))


def mebibytes(size: int) -> str:
    return f"{size / 2**20:.0f} MiB" if size else ""
