"""Strangers without credentials who come in masses: what they may cost, and what they must not hinder."""

from __future__ import annotations

import contextlib
import itertools
import select
import signal
import socket
from pathlib import Path

import psutil
import pytest

from manager.usage import allow_many_files
from tests.authority import Tokens
from tests.fuzz import http2
from tests.process.running import RunningCoordinator, start_coordinator
from tests.process.test_admission import WithFewFiles
from tests.process.test_security import elsewhere, ended, hello, needs_a_network
from tests.support import PATIENCE, Devices, eventually


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    made = Tokens(tmp_path)
    made.issue("a")
    return made


def worker_of(coordinator: RunningCoordinator) -> psutil.Process:
    (worker,) = [each for each in coordinator.children() if "manager" in " ".join(each.cmdline())]
    return worker


def opened_and_reset(number: int) -> bytes:
    """A stream without a token that is given up at once, so that any number fits into a connection."""
    reset = http2.frame(http2.RST_STREAM, (8).to_bytes(4, "big"), stream=number)
    return http2.call(stream=number, authorization="Bearer x") + reset


def take_in(connection: socket.socket) -> None:
    """What has arrived."""
    connection.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while connection.recv(1 << 20):
            pass
    connection.settimeout(PATIENCE)


def test_streams_that_strangers_open_by_the_thousand_take_little_memory(
    tmp_path: Path, tokens: Tokens
) -> None:
    """Each waits to be refused; what waits has a limit."""
    with start_coordinator(tmp_path / "log", "--workers=1", tokens.option) as coordinator:
        worker = worker_of(coordinator)
        before = most = worker.memory_info().rss
        host, _, port = coordinator.listen.rpartition(":")
        for _ in range(6):
            with socket.create_connection((host, int(port)), PATIENCE) as stranger:
                stranger.sendall(http2.hello() + http2.frame(http2.SETTINGS, flags=1))
                for first in range(1, 40_001, 400):
                    stranger.sendall(b"".join(map(opened_and_reset, range(first, first + 400, 2))))
                    take_in(stranger)
                    most = max(most, worker.memory_info().rss)
        assert most - before < 300 * 1024**2
        refused = eventually(lambda: coordinator.refused("credentials"))
        with socket.create_connection((host, int(port)), PATIENCE) as stranger:  # it lives, and refuses on
            stranger.sendall(http2.hello() + http2.frame(http2.SETTINGS, flags=1) + opened_and_reset(1))
            eventually(lambda: coordinator.refused("credentials") > refused)


def test_connections_that_strangers_make_do_not_keep_a_token_from_being_revoked(
    tmp_path: Path, devices: Devices, tokens: Tokens
) -> None:
    """A worker without a file to spare couldn't read who may take part."""
    options = ["--workers=1", "--handshake-timeout=600", "--keepalive=600", tokens.option]
    coordinator = WithFewFiles(tmp_path / "log", 400, *options)
    try:
        device = devices.one(coordinator.listen, hello(), token=tokens.issued["a"])
        eventually(lambda: coordinator.status()["participants"] == 1)
        host, _, port = coordinator.listen.rpartition(":")
        with contextlib.ExitStack() as strangers:
            for _ in range(500):
                strangers.enter_context(socket.create_connection((host, int(port)), PATIENCE))
            worker = worker_of(coordinator)
            eventually(lambda: worker.num_fds() > 300)
            tokens.revoke("a")
            assert ended(device)[0] == "UNAUTHENTICATED"
            assert worker.num_fds() < 380
        coordinator.send(signal.SIGTERM)
        assert coordinator.wait() == 0, coordinator.output
    finally:
        coordinator.end()


@needs_a_network
def test_connections_from_one_address_have_a_limit_and_participants_there_keep_theirs(
    tmp_path: Path, devices: Devices, tokens: Tokens
) -> None:
    """Whoever holds many takes them from others."""
    tokens.issue("b")
    options = ["--workers=1", "--listen=0.0.0.0:0", "--insecure", "--max-per-address=3", tokens.option]
    options += ["--handshake-timeout=600"]  # nothing else ends them
    with start_coordinator(tmp_path / "log", *options) as coordinator:
        port = int(coordinator.listen.rpartition(":")[2])
        device = devices.one(f"{elsewhere()}:{port}", hello(), token=tokens.issued["a"])
        eventually(lambda: coordinator.status()["participants"] == 1)
        with contextlib.ExitStack() as stack:
            local = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            strangers = [
                stack.enter_context(socket.create_connection((elsewhere(), port), PATIENCE))
                for _ in range(20)
            ]
            eventually(lambda: sum(map(has_ended, strangers)) >= 15)
            eventually(lambda: coordinator.refused("connections_per_address") == 15)
            assert sum(map(has_ended, strangers)) == 15
            assert not has_ended(local)
            assert device.ended is None
            # Nor do those that are left keep another one out.
            devices.one(f"{elsewhere()}:{port}", hello(), token=tokens.issued["b"])
            eventually(lambda: coordinator.status()["participants"] == 2)
        assert coordinator.output.count("--max-per-address") == 1


@needs_a_network
def test_thousands_of_connections_from_one_address_do_not_keep_others_out_for_long(
    tmp_path: Path, devices: Devices
) -> None:
    allow_many_files()
    options = ["--workers=1", "--listen=0.0.0.0:0", "--insecure", "--max-per-address=100"]
    coordinator = WithFewFiles(tmp_path / "log", 4096, *options)
    try:
        port = int(coordinator.listen.rpartition(":")[2])
        with contextlib.ExitStack() as stack:
            for _ in range(3200):
                stack.enter_context(socket.create_connection((elsewhere(), port), PATIENCE))
            devices.join(f"127.0.0.1:{port}")
            eventually(lambda: coordinator.status()["participants"] == 1, what="room for another")
            worker = worker_of(coordinator)
            eventually(lambda: worker.num_fds() < 400)
            eventually(lambda: coordinator.refused("connections_per_address") > 2000)
        assert "--max-per-address" in coordinator.output
        coordinator.send(signal.SIGTERM)
        assert coordinator.wait() == 0, coordinator.output
    finally:
        coordinator.end()


def test_that_connections_are_cut_off_because_there_are_too_many_is_shown(tmp_path: Path) -> None:
    options = [
        "--workers=1",
        "--listen=0.0.0.0:0",
        "--insecure",
        "--handshake-timeout=600",
        "--keepalive=600",
    ]
    coordinator = WithFewFiles(tmp_path / "log", 400, *options)
    try:
        port = int(coordinator.listen.rpartition(":")[2])
        with contextlib.ExitStack() as stack:
            for _ in range(500):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            (trouble,) = eventually(lambda: coordinator.status()["troubles"])
            assert "as many as there may be: newcomers are cut off" in trouble
            eventually(lambda: coordinator.refused("max_connections"))
            assert "newcomers are cut off" in coordinator.output
        eventually(lambda: not coordinator.status()["troubles"])
        coordinator.send(signal.SIGTERM)
        assert coordinator.wait() == 0, coordinator.output
    finally:
        coordinator.end()


def has_ended(connection: socket.socket) -> bool:
    """Whether its other end has closed it."""
    readable, _, _ = select.select([connection], [], [], 0)
    try:
        return bool(readable) and not connection.recv(1 << 16)
    except ConnectionResetError:
        return True


def test_a_stranger_keeps_no_connection_by_asking_again_and_again(tmp_path: Path, tokens: Tokens) -> None:
    with start_coordinator(tmp_path / "log", "--workers=1", "--idle-timeout=2", tokens.option) as coordinator:
        host, _, port = coordinator.listen.rpartition(":")
        with socket.create_connection((host, int(port)), PATIENCE) as stranger:
            stranger.sendall(http2.hello() + http2.frame(http2.SETTINGS, flags=1))
            numbers = itertools.count(1, 2)

            def asks_in_vain() -> bool:
                stranger.sendall(opened_and_reset(next(numbers)))
                return has_ended(stranger)

            with contextlib.suppress(ConnectionError):
                eventually(asks_in_vain)
        eventually(lambda: coordinator.refused("idle_timeout") == 1)
        assert "--idle-timeout" in coordinator.output


@pytest.mark.parametrize(("files", "most"), [(230, 230), (1000, 400)], ids=["all of them", "a part"])
def test_connections_to_the_control_address_do_not_end_the_coordinator(
    tmp_path: Path, devices: Devices, files: int, most: int
) -> None:
    """Whether they take all of its files, or as many as they may."""
    coordinator = WithFewFiles(tmp_path / "log", files, "--workers=1")
    try:
        (device,) = devices.join(coordinator.listen, 1)
        eventually(lambda: "1 participant (+1)" in coordinator.output)
        process = psutil.Process(coordinator.pid)
        host, _, port = coordinator.control.rpartition(":")
        with contextlib.ExitStack() as strangers:
            for _ in range(1200):
                strangers.enter_context(socket.create_connection((host, int(port)), PATIENCE))
            eventually(lambda: process.num_fds() > min(files - 10, 300))
            assert process.num_fds() <= most
            device.cut()  # so it still looks, and lives
            eventually(lambda: "0 participants (-1)" in coordinator.output)
        eventually(lambda: process.num_fds() < 100)
        assert coordinator.status()["workers"][0]["state"] == "up"
        coordinator.send(signal.SIGTERM)
        assert coordinator.wait() == 0, coordinator.output
    finally:
        coordinator.end()


def test_headers_that_are_no_text_are_not_logged(tmp_path: Path, tokens: Tokens) -> None:
    """gRPC would do so for each, with a traceback: strangers' lines, or a token that is mistyped."""
    (tmp_path / "scripts").mkdir()
    scripts = Tokens(tmp_path / "scripts")
    options = ["--workers=1", tokens.option, f"--control-tokens={scripts.file}"]
    with start_coordinator(tmp_path / "log", *options) as coordinator:
        for address, path in [(coordinator.listen, http2.CONNECT), (coordinator.control, http2.ATTACH)]:
            host, _, port = address.rpartition(":")
            with socket.create_connection((host, int(port)), PATIENCE) as stranger:
                stranger.sendall(http2.hello() + http2.frame(http2.SETTINGS, flags=1))
                for number in range(1, 101, 2):
                    odd = {"authorization": "Bearer my-secret\udcff", "x_odd": "\udcfe" * 100}
                    stranger.sendall(http2.call(path, stream=number, **odd))
                answered = b""
                while answered.count(b"grpc-status") < 50:
                    answered += stranger.recv(1 << 16)
        eventually(lambda: "ended the stream of a participant" in coordinator.output)
        eventually(lambda: "at the control address" in coordinator.output)
        assert "my-secret" not in coordinator.output
        assert "Traceback" not in coordinator.output
        assert len(coordinator.output.splitlines()) < 12, coordinator.output
