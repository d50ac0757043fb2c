"""Who may connect to the link: over TCP workers with the right keys, over ipc nobody but this user.

All the while participants of the same cluster are called, and no call may suffer.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from zmq.utils.monitor import parse_monitor_message

from coordinator import connect
from coordinator.commands.certs import make
from manager.link.keys import coordinator_keys, worker_keys
from tests.fuzz import live
from tests.fuzz.strangers import LinkStranger, hello_of
from tests.process.running import (
    RunningCoordinator,
    kill,
    killed,
    link_endpoint,
    own_port,
    run,
    start_coordinator,
)
from tests.support import PATIENCE, Devices, eventually, instruction

Options = Mapping[int, int | bytes]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("keys") / "certs").link


@pytest.fixture(scope="module")
def one_cluster(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[live.Cluster]:
    """Two workers on a link over TCP, with participants that are called all the while."""
    devices = Devices()
    options = ("--link=tcp://127.0.0.1:0", f"--link-keys={keys}")
    try:
        with live.cluster(tmp_path_factory.mktemp("cluster"), devices, *options) as running:
            yield running
    finally:
        devices.close()


@pytest.fixture
def running(one_cluster: live.Cluster) -> Iterator[live.Cluster]:
    """The cluster; no call may suffer meanwhile."""
    innocent = one_cluster.innocent
    before = one_cluster.status()["workers"]
    yield one_cluster
    enough = innocent.calls + 3
    eventually(lambda: innocent.calls > enough or innocent.suffered)
    suffered, innocent.suffered = innocent.suffered, []  # by this test, not by the next
    assert not suffered
    for then, now in zip(before, one_cluster.status()["workers"], strict=True):
        assert (then["pid"], then["incarnation"]) == (now["pid"], now["incarnation"])


def curve(server: bytes, public: bytes, secret: bytes) -> Options:
    return {zmq.CURVE_SERVERKEY: server, zmq.CURVE_PUBLICKEY: public, zmq.CURVE_SECRETKEY: secret}


def of_a_worker(keys: Path) -> Options:
    ours = worker_keys(keys)
    return curve(ours.coordinator, ours.pair.public, ours.pair.secret)


@contextlib.contextmanager
def stranger(
    running: live.Cluster, options: Options, identity: bytes = b"", watch: int = 0
) -> Iterator[LinkStranger]:
    dealer = LinkStranger(running.endpoint, identity, options, watch)
    try:
        yield dealer
    finally:
        dealer.close(linger=0)


def greeting(mechanism: bytes) -> bytes:
    """With which both ends of a ZeroMQ connection begin (RFC 23)."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(52, b"\0")


# Over TCP


def test_who_has_a_workers_keys_is_heard(running: live.Cluster, keys: Path) -> None:
    """As those are who don't have them over ipc: it isn't for another reason that they get no answer here."""
    with stranger(running, of_a_worker(keys)) as dealer:
        dealer.send(hello_of(7))
        assert dealer.answer().refusal.reason == "there is no such worker"


NONE = "hung up|uses no keys"
"""Which of the two is a matter of who closes the connection first."""

REFUSED: dict[str, tuple[str, Any]] = {
    "no keys": (NONE, lambda keys: {}),
    "a password": (NONE, lambda keys: {zmq.PLAIN_USERNAME: b"a", zmq.PLAIN_PASSWORD: b"b"}),
    "a key that isn't on the list": (
        "from 127.0.0.1: its key is not among those of the workers",
        lambda keys: curve(worker_keys(keys).coordinator, *zmq.curve_keypair()),
    ),
    "the coordinator's own key": (
        "its key is not among those",
        lambda keys: curve(
            worker_keys(keys).coordinator,
            coordinator_keys(keys).pair.public,
            coordinator_keys(keys).pair.secret,
        ),
    ),
    "another server's key": (
        "the keys don't go together",
        lambda keys: curve(
            zmq.curve_keypair()[0], worker_keys(keys).pair.public, worker_keys(keys).pair.secret
        ),
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_who_has_none_of_the_right_keys_gets_nowhere(running: live.Cluster, keys: Path, kind: str) -> None:
    words, options = REFUSED[kind]
    (worker, _) = running.status()["workers"]
    before = running.status()["link_errors"]
    its_own = f"0.{worker['incarnation']}.{worker['pid']}".encode()
    watch = (
        zmq.EVENT_HANDSHAKE_FAILED_AUTH
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_HANDSHAKE_SUCCEEDED
    )
    with stranger(running, options(keys), its_own, watch) as dealer:
        try:
            with contextlib.suppress(zmq.Again):  # it has been refused by now
                dealer.socket.send_multipart(
                    hello_of(0, worker["incarnation"], pid=worker["pid"]), zmq.DONTWAIT
                )
            assert dealer.monitor.poll(int(PATIENCE * 1000))
            event = parse_monitor_message(dealer.monitor.recv_multipart())
            assert event["event"] != zmq.EVENT_HANDSHAKE_SUCCEEDED
            eventually(lambda: running.status()["link_errors"] > before, what="a refusal that is counted")
            assert dealer.socket.poll(0) == 0
        finally:
            dealer.socket.disable_monitor()
            dealer.monitor.close()
    (line, *_) = [
        record["event"] for record in running.coordinator.records() if re.search(words, record["event"])
    ]
    assert line.startswith("refused a peer on the link")


def test_a_thousand_refusals_are_a_few_lines(running: live.Cluster, keys: Path) -> None:
    options = REFUSED["a key that isn't on the list"][1](keys)
    before = running.status()["link_errors"]
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(stranger(running, options))
        eventually(lambda: running.status()["link_errors"] >= before + 50)
    lines = [record for record in running.coordinator.records() if "refused a peer" in record["event"]]
    assert len(lines) < 20


def test_noise_on_the_links_port_disturbs_nobody(running: live.Cluster) -> None:
    host, _, port = running.endpoint.removeprefix("tcp://").rpartition(":")
    noise = [random.Random(seed).randbytes(5_000) for seed in range(20)]
    with contextlib.ExitStack() as stack:
        for request in [
            b"GET / HTTP/1.1\r\n\r\n",
            greeting(b"CURVE"),
            greeting(b"CURVE") + noise[0],
            b"",
            *noise,
        ]:
            raw = stack.enter_context(socket.create_connection((host, int(port))))
            with contextlib.suppress(ConnectionError):
                raw.sendall(request)
        enough = running.innocent.calls + 20
        eventually(lambda: running.innocent.calls > enough)
    assert running.status()["participants"] == live.PARTICIPANTS


def test_no_key_is_on_a_command_line_or_in_the_log(running: live.Cluster, keys: Path) -> None:
    secrets = [coordinator_keys(keys).pair.secret.decode(), worker_keys(keys).pair.secret.decode()]
    for process in running.processes:
        shown = [*process.cmdline(), *process.environ().values()]
        assert not any(secret in text for secret in secrets for text in shown)
    assert all(f"--link-keys={keys}" in process.cmdline() for process in running.coordinator.children())
    assert not any(secret in running.coordinator.output for secret in secrets)


# A coordinator that is killed


@contextlib.contextmanager
def gone(
    tmp_path: Path, keys: Path, devices: Devices
) -> Iterator[tuple[RunningCoordinator, list[str], list[dict[str, Any]]]]:
    """One with a participant per worker; the options to start it again with, and its workers."""
    options = ["--workers=2", "--orphan-grace=90", f"--run-dir={tmp_path / 'run'}", f"--link-keys={keys}"]
    with killed(tmp_path / "first.log", *options, f"--link=tcp://127.0.0.1:{own_port()}") as first:
        devices.join(first.listen, 8)
        eventually(lambda: first.status()["participants"] == 8)
        before = first.status()["workers"]
        options += [f"--link={link_endpoint(tmp_path / 'run')}", f"--listen={first.listen}"]
        kill(first)
        yield first, options, before


def test_one_that_is_started_again_has_its_workers_back(tmp_path: Path, keys: Path, devices: Devices) -> None:
    with (
        gone(tmp_path, keys, devices) as (_, options, before),
        start_coordinator(tmp_path / "second.log", *options) as second,
        connect(second.control) as connection,
    ):
        assert [worker["pid"] for worker in second.status()["workers"]] == [each["pid"] for each in before]
        cohort = connection.get_participants(8, timeout=PATIENCE)
        assert len(cohort.run(instruction("echo"), timeout=PATIENCE).results) == 8


def test_its_workers_wait_for_it_though_somebody_else_has_its_port_meanwhile(
    tmp_path: Path, keys: Path, devices: Devices
) -> None:
    """One that speaks ZeroMQ, but no CURVE: for ZeroMQ itself that would be the end of it."""
    with gone(tmp_path, keys, devices) as (first, options, before):
        host, _, port = link_endpoint(tmp_path / "run").removeprefix("tcp://").rpartition(":")
        with contextlib.ExitStack() as stack:
            somebody = stack.enter_context(socket.create_server((host, int(port))))
            somebody.setblocking(False)

            def both_in_trouble() -> bool:
                with contextlib.suppress(BlockingIOError):  # one may come again before the other comes at all
                    connection, _ = somebody.accept()
                    stack.enter_context(connection).sendall(greeting(b"NULL"))
                said = f"{host}:{port}: the peer uses no keys"
                return len({each["worker"] for each in first.records() if said in each["event"]}) == 2

            eventually(both_in_trouble)
        with start_coordinator(tmp_path / "second.log", *options) as second:
            after = second.status()["workers"]
            assert [worker["pid"] for worker in after] == [worker["pid"] for worker in before]


@pytest.mark.long(7)
def test_with_other_keys_it_gets_other_workers(tmp_path: Path, keys: Path, devices: Devices) -> None:
    own = make(tmp_path / "certs").link
    with gone(tmp_path, own, devices) as (first, options, before):
        for file in keys.iterdir():
            (own / file.name).write_bytes(file.read_bytes())
        with start_coordinator(tmp_path / "second.log", *options) as second:
            assert [worker["incarnation"] for worker in second.status()["workers"]] == [2, 2]
            assert "can't connect to the coordinator" in first.output
            eventually(lambda: not any(psutil.pid_exists(worker["pid"]) for worker in before))


# What is said at the start


def test_over_tcp_it_does_not_start_without_keys() -> None:
    done = run("coordinator", "start", "--link=tcp://127.0.0.1:0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "Error: link tcp://127.0.0.1:0: over TCP workers and coordinator must know one another; "
        "--link-keys DIR names the keys, and `coordinator certs` makes them"
    )


def test_keys_that_can_not_be_used_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "link").mkdir()
    options = ["--listen=127.0.0.1:0", "--control=127.0.0.1:0", "--link=tcp://127.0.0.1:0"]
    done = run("coordinator", "start", *options, f"--link-keys={tmp_path / 'link'}")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"Error: can't use the link's keys in {tmp_path / 'link'}: No such file or directory"
    )


def test_a_worker_says_the_same(tmp_path: Path) -> None:
    for options in (
        ["--coordinator=tcp://127.0.0.1:1"],
        ["--coordinator=ipc://x", f"--link-keys={tmp_path}"],
    ):
        done = run("manager", "start", "--index=0", "--listen=127.0.0.1:0", *options)
        assert done.returncode == 3
        assert "--link-keys goes with a link over TCP" in done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])  # noqa: S104
def test_a_link_on_all_addresses_is_used_through_this_machines_own(
    tmp_path: Path, keys: Path, host: str
) -> None:
    options = [f"--link=tcp://{host}:0", f"--link-keys={keys}", f"--run-dir={tmp_path / 'run'}"]
    with start_coordinator(tmp_path / "coordinator.log", "--workers=1", *options):
        here = "[::1]" if ":" in host else "127.0.0.1"
        assert link_endpoint(tmp_path / "run").startswith(f"tcp://{here}:")


# Over ipc


def test_the_links_socket_is_this_users_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with start_coordinator(tmp_path / "c.log", "--workers=1", f"--run-dir={tmp_path / 'run'}"):
            found = (tmp_path / "run" / "link.sock").stat()
            assert stat.S_IMODE(found.st_mode) == 0o600
            assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    finally:
        os.umask(before)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory like /tmp; its path is short, for sockets."""
    with tempfile.TemporaryDirectory(prefix="m-", dir="/tmp") as directory:
        Path(directory).chmod(0o1777)
        yield Path(directory)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_gets_neither_in_nor_in_the_way(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the user nobody: what it has made first is refused, what is there already it can't reach."""

    def as_nobody(program: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                "-c",
                f"import os, socket; os.setgroups([]); os.setgid(65534); os.setuid(65534); {program}",
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    monkeypatch.setenv("TMPDIR", str(shared))
    with start_coordinator(tmp_path / "c.log", "--workers=1") as coordinator:
        (mine,) = (shared / f"muster-{os.getuid()}").iterdir()
        done = as_nobody(f"socket.socket(socket.AF_UNIX).connect({str(mine / 'link.sock')!r})")
        assert "PermissionError" in done.stderr
        done = as_nobody(f"os.rename({str(mine.parent)!r}, {str(shared / 'away')!r})")
        assert "Operation not permitted" in done.stderr
        assert coordinator.status()["workers"][0]["state"] == "up"
    mine.parent.rmdir()
    for trap in (
        f"os.mkdir({str(mine.parent)!r}, 0o777)",
        f"os.mkdir({str(shared / 'theirs')!r}); os.symlink({str(shared / 'theirs')!r}, {str(mine.parent)!r})",
    ):
        assert as_nobody(trap).returncode == 0
        done = run("coordinator", "start", "--listen=127.0.0.1:0", "--control=127.0.0.1:0")
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "it belongs to somebody else; --run-dir names another" in line
        mine.parent.unlink() if mine.parent.is_symlink() else mine.parent.rmdir()
