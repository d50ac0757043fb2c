"""Bad input on the link's ZeroMQ socket, and at all ports at once: refused or ignored, counted, and harmless.

PROTOCOL.md B.1 and B.8. All the while participants of the same cluster are called, and no call may suffer.
"""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from manager.cli import EXIT_LINK_LOST
from manager.link.uplink import LINK_VERSION
from protos import link_pb2
from tests.fuzz import live
from tests.fuzz.strangers import LinkStranger, hello_of
from tests.support import Devices, eventually


@pytest.fixture(scope="module")
def one_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Cluster]:
    """Two workers with participants that are called all the while."""
    devices = Devices()
    try:
        with live.cluster(tmp_path_factory.mktemp("cluster"), devices) as running:
            yield running
    finally:
        devices.close()


@pytest.fixture
def running(one_cluster: live.Cluster) -> Iterator[live.Cluster]:
    """The cluster; no call may suffer meanwhile."""
    innocent = one_cluster.innocent
    yield one_cluster
    enough = innocent.calls + 3
    eventually(lambda: innocent.calls > enough or innocent.suffered)
    suffered, innocent.suffered = innocent.suffered, []  # by this test, not by the next
    assert not suffered


@contextlib.contextmanager
def stranger(running: live.Cluster, identity: bytes = b"") -> Iterator[LinkStranger]:
    dealer = LinkStranger(running.endpoint, identity)
    try:
        yield dealer
    finally:
        dealer.close()


def test_what_is_wrong_on_the_link_is_refused_or_ignored_and_counted(running: live.Cluster) -> None:
    version = (
        f"link version {LINK_VERSION + 1} was offered, {LINK_VERSION} is spoken here; "
        f"install the same version of muster on both sides"
    )
    refused = [
        (hello_of(0, version=LINK_VERSION + 1), version),
        (hello_of(7), "there is no such worker"),
        (hello_of(1, incarnation=0), "incarnation 0 of worker 1 has been replaced"),
        (hello_of(1, incarnation=9), "incarnation 9 of worker 1 has been replaced"),
    ]
    before = running.status()["link_errors"]
    with stranger(running) as dealer:
        for frames, reason in refused:
            dealer.send(frames)
            assert dealer.answer().refusal.reason == reason
        counted = running.status()["link_errors"]
        assert counted == before + len(refused)
        # Reports of somebody who has not said hello are not acted upon; who it is is asked.
        report = link_pb2.Upward(
            sequence=1, report=link_pb2.Report(end_sessions=[1], end_reasons=[link_pb2.LOST])
        )
        dealer.send([report.SerializeToString()])
        assert dealer.answer().HasField("identify")
        assert running.status()["link_errors"] == counted, "a coordinator that is new gets many of these"
        dealer.send([b"\xff\xff"])
        dealer.send([report.SerializeToString(), b"", b"more than the header lists"])
        eventually(lambda: running.status()["link_errors"] == counted + 2)
        lines = [record for record in running.coordinator.records() if "ignored a message" in record["event"]]
        assert len(lines) == 1, "logged once, then summed up"


def test_frames_of_a_worker_that_a_stranger_repeats_are_not_acted_upon(running: live.Cluster) -> None:
    ends = link_pb2.Report(end_sessions=range(1, 100), end_reasons=[link_pb2.LOST] * 99)
    goodbye = link_pb2.Upward(sequence=2, goodbye=link_pb2.Goodbye(reason="drained"))
    with stranger(running) as dealer:
        for sequence in range(1, 50):
            dealer.send([link_pb2.Upward(sequence=sequence, report=ends).SerializeToString()])
            dealer.send([goodbye.SerializeToString()])
            assert dealer.answer().HasField("identify")
            assert dealer.answer().HasField("identify")
    assert running.status()["participants"] == live.PARTICIPANTS


def test_a_hello_that_a_stranger_repeats_takes_no_workers_place(running: live.Cluster) -> None:
    (worker, _) = running.status()["workers"]
    with stranger(running) as dealer:
        for _ in range(20):
            dealer.send(hello_of(0, worker["incarnation"], pid=worker["pid"]))
        # Innocent (of the fixture) would have lost calls that went to the stranger instead of the worker.
        enough = running.innocent.calls + 5
        eventually(lambda: running.innocent.calls > enough)


def test_what_is_no_zeromq_on_the_links_socket_is_no_message(running: live.Cluster) -> None:
    path = running.endpoint.removeprefix("ipc://")
    noise = [random.Random(seed).randbytes(5_000) for seed in range(50)]
    with contextlib.ExitStack() as stack:
        for request in [b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f" + bytes(60), *noise]:
            raw = stack.enter_context(socket.socket(socket.AF_UNIX))
            raw.connect(path)
            with contextlib.suppress(ConnectionError):
                raw.sendall(request)
        enough = running.innocent.calls + 20
        eventually(lambda: running.innocent.calls > enough)
    assert running.status()["participants"] == live.PARTICIPANTS


OTHER_VERSION = """
import sys
from coordinator.workers import downlink
from manager.link import uplink
from manager.cli import main
uplink.LINK_VERSION = downlink.LINK_VERSION = 9
main(sys.argv[1:])
"""


def test_a_manager_of_another_link_version_says_what_to_do_and_exits(running: live.Cluster) -> None:
    arguments = ["start", f"--coordinator={running.endpoint}", "--index=0", "--listen=127.0.0.1:0"]
    done = subprocess.run(
        [sys.executable, "-c", OTHER_VERSION, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == EXIT_LINK_LOST
    assert (
        f"the coordinator refused this manager: link version 9 was offered, {LINK_VERSION} is spoken here; "
        f"install the same version of muster on both sides"
    ) in done.stderr


def test_hundreds_of_strangers_at_all_ports_at_once_cost_nobody_anything(running: live.Cluster) -> None:
    live.disturb(running, peers=100, seed=1)
    before = live.sizes(running)
    live.disturb(running, peers=300, seed=2)
    live.only_the_innocent(running)
    growth = [after - level for after, level in zip(live.sizes(running), before, strict=True)]
    assert max(growth) < live.MOST_GROWTH, growth
