"""Decisions run on the monotonic clock alone: a clock that is set, or that jumps, changes none of them.

Wall clocks may be read only where people read the time: in the formats of log lines, and where a certificate
is made, or is out of date by this machine's clock.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_layout import PACKAGES, ROOT, sources

WALL_CLOCKS = {
    "time": {"time", "time_ns", "ctime", "localtime", "gmtime", "strftime", "asctime", "clock_gettime"},
    "datetime": {"datetime", "date"},
}
"""Module and name. ``timedelta`` and ``UTC`` are no clocks."""

FOR_PEOPLE = {
    "participant_sdk/logs.py",
    "manager/logs.py",
    "protos/tls.py",
    "coordinator/commands/authority.py",
    "coordinator/commands/certs.py",
    "manager/serving/gate.py",
    "manager/access/peer_certificate.py",
}
"""Files that tell people the time, in log lines or beside a certificate's, or date certificates, and decide
nothing by it that happens between processes, but for one thing: whether a certificate has expired, which is
said in such times."""

MISLEADING = {"os.utime", "st_mtime", "st_ctime", "st_atime", "create_time"}
"""Other ways to come by a wall-clock time."""


def wall_clocks(tree: ast.AST) -> Iterator[str]:
    """The wall clocks that a module reads, or takes hold of in order to."""
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                modules.update({alias.asname or alias.name: alias.name for alias in names})
            case ast.ImportFrom(module, names) if module in WALL_CLOCKS:
                for alias in names:
                    if alias.name in WALL_CLOCKS[module]:
                        yield f"line {node.lineno}: {module}.{alias.name}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        if node.attr in MISLEADING:
            yield f"line {node.lineno}: {node.attr}"
        if isinstance(node.value, ast.Name):
            module = modules.get(node.value.id, "")
            if node.attr in WALL_CLOCKS.get(module, ()):
                yield f"line {node.lineno}: {module}.{node.attr}"


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_decided_by_a_wall_clock(package: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}, {use}"
        for path in sources(package)
        if str(path.relative_to(ROOT)) not in FOR_PEOPLE
        for use in wall_clocks(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import time\nx = time.time()",
        "import time as t\nnow = t.time_ns",
        "from time import time",
        "from datetime import datetime, timedelta",
        "import datetime\ndatetime.datetime.now()",
        "path.stat().st_mtime",
        "psutil.Process().create_time()",
    ],
)
def test_a_wall_clock_would_be_found(source: str) -> None:
    assert list(wall_clocks(ast.parse(source)))


@pytest.mark.parametrize(
    "source", ["import time\ntime.monotonic()\ntime.process_time()", "from datetime import timedelta"]
)
def test_other_clocks_may_be_used(source: str) -> None:
    assert not list(wall_clocks(ast.parse(source)))


def test_the_event_loops_run_on_a_monotonic_clock() -> None:
    """Their timers are what waits for deadlines."""
    import asyncio
    import time
    from unittest import mock

    from manager.loop import new_event_loop

    for make in (asyncio.new_event_loop, new_event_loop):
        loop = make()
        try:
            before = loop.time()
            with mock.patch.object(time, "time", return_value=0.0):
                assert 0 <= loop.time() - before < 60
            assert abs(loop.time() - time.monotonic()) < 60
        finally:
            loop.close()


def test_only_files_that_exist_are_excused() -> None:
    assert all(Path(ROOT, name).is_file() for name in FOR_PEOPLE)
