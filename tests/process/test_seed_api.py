"""The seed API: both snippets of the design run as written, and the same subclass serves in both modes."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from coordinator import Coordinator
from manager import AddressInUse, Server, create_participant_manager
from manager.errors import Closed, MusterError
from protos import stream_pb2
from tests.process.conftest import Echo
from tests.process.running import own_port
from tests.support import Devices, eventually, instruction

SERVER_SNIPPET = """
from manager import ParticipantProxy, create_participant_manager
from protos import stream_pb2

class Participant(ParticipantProxy):
    def train(self, theta):
        return self.run(stream_pb2.ServerMessage(instruction=stream_pb2.Instruction(payload=theta)))

server, participant_manager = create_participant_manager(participant_proxy_factory=Participant)
participants = participant_manager.get_participants(min_num_participants=10)   # blocks until 10 are pooled
"""

CLIENT_SNIPPET = """
from participant_sdk import client

with client.connection("host:50051") as c:
    consume, dispatch = c
    dispatch(stream_pb2.ParticipantMessage())              # passes the initiative to the server
    while True:
        dispatch(do_something(consume()))
"""


def do_something(message: stream_pb2.ServerMessage) -> stream_pb2.ParticipantMessage:
    payload = message.instruction.payload
    return stream_pb2.ParticipantMessage(result=stream_pb2.Result(payload=payload[::-1]))


def test_both_snippets_run_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSTER_LISTEN", f"127.0.0.1:{own_port()}")
    server_side: dict[str, object] = {}
    exec(SERVER_SNIPPET.partition("participants = ")[0], server_side)  # noqa: S102 - our own text
    server = server_side["server"]
    assert isinstance(server, Server)
    ended: list[str] = []

    def device() -> None:
        code = CLIENT_SNIPPET.replace("host:50051", server.address)
        try:
            exec(code, {"stream_pb2": stream_pb2, "do_something": do_something})  # noqa: S102
        except Exception as error:
            ended.append(type(error).__name__)

    devices = [threading.Thread(target=device) for _ in range(10)]
    try:
        for thread in devices:
            thread.start()
        exec("participants = " + SERVER_SNIPPET.partition("participants = ")[2], server_side)  # noqa: S102
        participants = server_side["participants"]
        assert [p.train(b"theta").result.payload for p in participants] == [b"ateht"] * 10  # type: ignore[attr-defined]
    finally:
        server.stop()
        for thread in devices:
            thread.join()
    assert ended == ["Reconnect"] * 10


def test_the_same_subclass_serves_over_many_processes(devices: Devices) -> None:
    with Coordinator(
        workers=2, listen="127.0.0.1:0", participant_proxy_factory=Echo, log_level="warning"
    ) as coordinator:
        devices.join(coordinator.listen, 3)
        for participant in coordinator.get_participants(3, timeout=20):
            assert participant.echo(b"x") == b"x"


def test_a_second_server_on_the_same_address_is_refused() -> None:
    server, _ = create_participant_manager(listen="127.0.0.1:0")
    with server, pytest.raises(AddressInUse, match=f"{server.address} is in use: by another"):
        create_participant_manager(listen=server.address)


def test_stopping_ends_calls_and_waiting_callers(devices: Devices) -> None:
    server, manager = create_participant_manager(listen="127.0.0.1:0")
    (device,) = devices.join(server.address, 1)
    (proxy,) = manager.get_participants(1, timeout=20)
    errors: list[MusterError] = []

    def wait_for_more() -> None:
        try:
            manager.get_participants(2)
        except MusterError as error:
            errors.append(error)

    def hold() -> None:
        try:
            proxy.run(instruction("hold"))
        except MusterError as error:
            errors.append(error)

    threads = [threading.Thread(target=wait_for_more), threading.Thread(target=hold)]
    for thread in threads:
        thread.start()
    assert device.holding.wait(20)
    eventually(lambda: manager._dispatcher.pool.waiting == 1)
    server.stop()
    server.stop()
    for thread in threads:
        thread.join(20)
    assert sorted(type(error).__name__ for error in errors) == ["Closed", "ParticipantLost"]
    with pytest.raises(Closed):
        manager.get_participants(1)
    assert server.wait_for_termination(0)


def test_a_script_that_forgets_to_stop_it_ends_all_the_same() -> None:
    script = (
        "from manager import create_participant_manager\n"
        "server, manager = create_participant_manager(listen='127.0.0.1:0')\n"
        "print(len(manager))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
