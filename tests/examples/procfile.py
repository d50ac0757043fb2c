"""Runs a Procfile by honcho, with ports of its own, and finds what it leaves running."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]

_MARK = "MUSTER_TEST_MARK"


def marked_environment(out: Path) -> dict[str, str]:
    """An environment by which every process that is started with it can be found, whoever its parent is.

    Its plots go to ``out``.
    """
    listen, control = _free_addresses(2)
    scripts = Path(sys.executable).parent
    return {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "MUSTER_LISTEN": listen,
        "MUSTER_CONTROL": control,
        "DIGITS_OUT": str(out),
        _MARK: uuid.uuid4().hex,
    }


def start_procfile(name: str, environment: dict[str, str], log: Path, *processes: str) -> tuple[int, str]:
    """Runs all of it to its end, or these processes. Returns the exit code, and what was shown."""
    with log.open("wb") as out:  # not a pipe, which would keep us waiting for whatever honcho left behind
        command = [sys.executable, "-m", "honcho", "--procfile", name, "start", *processes]
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, timeout=50
        )
    return ended.returncode, log.read_text(encoding="utf-8")


def left_running(environment: dict[str, str]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == environment[_MARK]:
                found.append(process)
        except psutil.Error:  # ended by now, or somebody else's
            continue
    return found


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def _free_addresses(count: int) -> list[str]:
    """Ports below those that outgoing connections are given, so that none of them can take one before the
    coordinator does."""
    found: set[str] = set()
    while len(found) < count:
        address = ("127.0.0.1", random.randrange(20_000, 32_000))
        with socket.socket() as probe:
            try:
                probe.bind(address)
            except OSError:
                continue
        found.add(f"{address[0]}:{address[1]}")
    return list(found)
