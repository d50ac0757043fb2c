"""Bad input: each kind gets an error that says what is wrong, is counted, and costs nobody else anything.

The status codes are those of PROTOCOL.md A.10. What a single stream does wrong is sent by a Device; strangers
(tests/fuzz) come with raw TCP. The link's socket has its own tests: test_bad_link_input.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from coordinator import Coordinator
from manager.errors import ParticipantFailed
from protos import control_pb2, stream_pb2
from protos.chunks import MAX_FRAME_SIZE
from tests.fuzz import http2, strangers
from tests.process.conftest import Echo
from tests.support import CONNECT, Device, Devices, eventually, instruction, tensors

P = stream_pb2.ParticipantMessage
HELLO = P(hello=stream_pb2.Hello(participant_id="culprit")).SerializeToString()
RESULT = P(result=stream_pb2.Result()).SerializeToString()


def chunk(data: bytes, total: int = 0) -> bytes:
    return P(chunk=stream_pb2.Chunk(total_size=total, data=data)).SerializeToString()


def violations(coordinator: Coordinator[Echo]) -> int:
    return sum(coordinator.status().refused.values())


@contextmanager
def nobody_else_suffers(coordinator: Coordinator[Echo], devices: Devices) -> Iterator[None]:
    """Others answer before, and are still there and answer afterwards."""
    eventually(lambda: not coordinator.status().participants, what="the end of an earlier test's")
    others = devices.join(coordinator.listen, 4, prefix="innocent")
    cohort = coordinator.get_participants(4, timeout=20, where={})
    pids = [worker.pid for worker in coordinator.status().workers]
    assert len(cohort.run(instruction("echo"), timeout=20).results) == 4
    yield
    assert len(cohort.run(instruction("echo"), timeout=20).results) == 4
    assert all(other.ended is None for other in others)
    assert [worker.pid for worker in coordinator.status().workers] == pids


def ended(device: Device) -> tuple[str, str]:
    """How a stream ended: the status and its text."""
    code, text = eventually(lambda: device.ended, what="the end of the stream")
    return code.name, text


BEFORE_ANY_HELLO = [
    (b"\xff\xff\xff", "INVALID_ARGUMENT", "a ParticipantMessage can't begin with byte 0xff"),
    (b"\x32\x00", "INVALID_ARGUMENT", "a ParticipantMessage can't begin with byte 0x32"),
    (
        b"\x0a\x02\x0a",
        "INVALID_ARGUMENT",
        "a ParticipantMessage of 3 bytes holds a hello field that doesn't end where the message ends",
    ),
    (
        HELLO + RESULT,
        "INVALID_ARGUMENT",
        f"a ParticipantMessage of {len(HELLO + RESULT)} bytes holds a hello field that doesn't end where the "
        f"message ends",
    ),
    (b"\x0a\x03\x0a\x7f\x00", "INVALID_ARGUMENT", "a message of 5 bytes that is no ParticipantMessage"),
    (b"\x0a\x03\x0a\x01\xff", "INVALID_ARGUMENT", "a message of 5 bytes that is no ParticipantMessage"),
    (
        P(hello=stream_pb2.Hello(participant_id="anonymous-1")).SerializeToString(),
        "INVALID_ARGUMENT",
        "participant ids that begin with 'anonymous-' are made up by managers",
    ),
    (
        RESULT,
        "FAILED_PRECONDITION",
        "unexpected result message: the first message must be empty or a hello",
    ),
    (
        P(failure=stream_pb2.Failure()).SerializeToString(),
        "FAILED_PRECONDITION",
        "unexpected failure message: the first message must be empty or a hello",
    ),
    (
        chunk(HELLO, total=len(HELLO)),
        "FAILED_PRECONDITION",
        "unexpected chunk: only an answer may be so large",
    ),
]


@pytest.mark.parametrize(("data", "code", "text"), BEFORE_ANY_HELLO)
def test_a_first_message_that_is_none(
    coordinator: Coordinator[Echo], devices: Devices, data: bytes, code: str, text: str
) -> None:
    with nobody_else_suffers(coordinator, devices):
        before = violations(coordinator)
        device = devices.one(coordinator.listen, None)
        device.send(data)
        assert ended(device) == (code, text)
        eventually(lambda: violations(coordinator) == before + 1)
        assert coordinator.status().participants == 4, "it was never pooled"


IDLE = "no instruction is waiting for an answer; the server speaks next"


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (RESULT, "FAILED_PRECONDITION", f"unexpected result message: {IDLE}"),  # never asked for
        (b"", "FAILED_PRECONDITION", f"unexpected empty message: {IDLE}"),
        (HELLO, "FAILED_PRECONDITION", f"unexpected hello message: {IDLE}"),
        (
            chunk(b"x", total=2),
            "FAILED_PRECONDITION",
            "unexpected chunk: only an answer may be so large",
        ),
        (b"\x00", "INVALID_ARGUMENT", "a ParticipantMessage can't begin with byte 0x00"),
    ],
)
def test_an_idle_participant_that_speaks(
    coordinator: Coordinator[Echo], devices: Devices, data: bytes, code: str, text: str
) -> None:
    with nobody_else_suffers(coordinator, devices):
        before = violations(coordinator)
        (device,) = devices.join(coordinator.listen, prefix="culprit")
        eventually(lambda: coordinator.status().participants == 5)
        device.send(data)
        assert ended(device) == (code, text)
        eventually(lambda: violations(coordinator) == before + 1)
        eventually(lambda: coordinator.status().participants == 4)


BUSY = "an instruction is in flight; a result, a failure, an empty message or a leave must follow"


@pytest.mark.parametrize(
    ("messages", "code", "text"),
    [
        ([HELLO], "FAILED_PRECONDITION", f"unexpected hello message: {BUSY}"),
        (
            [chunk(b"x")],
            "INVALID_ARGUMENT",
            "the first chunk of a message must state its total size",
        ),
        ([chunk(b"", total=5)], "INVALID_ARGUMENT", "a chunk without data"),
        (
            [chunk(b"123", total=2)],
            "INVALID_ARGUMENT",
            "the chunks of a message exceed its stated 2 bytes",
        ),
        (
            [chunk(b"12", total=40_000), chunk(b"12", total=40_000)],
            "INVALID_ARGUMENT",
            "a new chunked message began before the last one was whole",
        ),
        (
            [chunk(b"12", total=40_000), RESULT],
            "FAILED_PRECONDITION",
            "unexpected result message: a chunked message isn't whole yet",
        ),
        (
            [chunk(HELLO, total=len(HELLO))],
            "INVALID_ARGUMENT",
            "only a result or a failure may come in chunks",
        ),
        (
            [chunk(b"12", total=40_000), chunk(b"3")],
            "INVALID_ARGUMENT",
            "a chunk of 1 bytes; all but first and last must have at least 16384",
        ),
    ],
)
def test_an_answer_that_is_none(
    coordinator: Coordinator[Echo], devices: Devices, messages: list[bytes], code: str, text: str
) -> None:
    with nobody_else_suffers(coordinator, devices):
        before = violations(coordinator)
        (device,) = devices.join(coordinator.listen, prefix="culprit", role="culprit")
        cohort = coordinator.get_participants(1, timeout=20, where={"role": "culprit"})
        with ThreadPoolExecutor(1) as threads:
            call = threads.submit(cohort.run, instruction("hold"), timeout=20)
            assert device.holding.wait(20)
            for message in messages:
                device.send(message)
            assert ended(device) == (code, text)
            outcome = call.result(20)
        assert [proxy.id for proxy in outcome.lost] == ["culprit-0"]
        eventually(lambda: violations(coordinator) == before + 1)


def test_a_result_that_cannot_be_read_is_its_callers_failure(
    coordinator: Coordinator[Echo], devices: Devices
) -> None:
    with nobody_else_suffers(coordinator, devices):
        devices.join(coordinator.listen, prefix="culprit", role="culprit")
        (proxy,) = coordinator.get_participants(1, timeout=20, where={"role": "culprit"})
        with pytest.raises(ParticipantFailed) as caught:
            proxy.run(instruction("garbage"), timeout=20)
        text = caught.value.failure.text
        assert text.startswith("its answer of 5 bytes is not a valid ParticipantMessage: ")
        assert proxy.echo(b"and the session goes on") == b"and the session goes on"


@pytest.mark.parametrize("first", [True, False])
def test_an_oversized_message(coordinator: Coordinator[Echo], devices: Devices, first: bool) -> None:
    size = MAX_FRAME_SIZE + 1

    async def call() -> tuple[grpc.StatusCode, str]:
        async with grpc.aio.insecure_channel(coordinator.listen) as channel:
            stream: Any = channel.stream_stream(CONNECT)()
            status: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

            def note(call: Any) -> None:
                if not status.done():
                    status.set_result(call.code())

            # A write that fails overwrites the true status with one of gRPC's own; this is told in time.
            stream.add_done_callback(note)
            with contextlib.suppress(grpc.aio.AioRpcError):
                if not first:
                    await stream.write(b"")
                await stream.write(b"\x12" + bytes(size - 1))
            return await (await status), await stream.details() or ""

    with nobody_else_suffers(coordinator, devices):
        code, text = devices.run(call())
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert text in (
            f"SERVER: Received message larger than max ({size} vs. {MAX_FRAME_SIZE})",
            "Internal error from Core",  # as above
        )
        eventually(lambda: coordinator.status().participants == 4)


def test_an_oversized_hello(coordinator: Coordinator[Echo], devices: Devices) -> None:
    with nobody_else_suffers(coordinator, devices):
        before = violations(coordinator)
        hello = P(hello=stream_pb2.Hello(attributes={"notes": "x" * 20_000}))
        device = devices.one(coordinator.listen, hello)
        size = hello.ByteSize()
        text = f"a first message of {size} bytes; it may have 16384 at most"
        assert ended(device) == ("INVALID_ARGUMENT", text)
        eventually(lambda: violations(coordinator) == before + 1)


@pytest.mark.parametrize("size", [20_000, 1_000_000])
def test_oversized_metadata(coordinator: Coordinator[Echo], devices: Devices, size: int) -> None:
    async def call() -> tuple[grpc.StatusCode, str]:
        async with grpc.aio.insecure_channel(coordinator.listen) as channel:
            stream: Any = channel.stream_stream(CONNECT)(metadata=(("x-large", "x" * size),))
            return await stream.code(), await stream.details() or ""

    with nobody_else_suffers(coordinator, devices):
        code, text = devices.run(call())
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert text.startswith("received metadata size exceeds hard limit")


def test_of_two_with_one_id_the_newer_wins_and_the_older_is_told(
    coordinator: Coordinator[Echo], devices: Devices
) -> None:
    with nobody_else_suffers(coordinator, devices):
        before = violations(coordinator)
        (older,) = devices.join(coordinator.listen, prefix="twin")
        eventually(lambda: coordinator.status().participants == 5)
        (newer,) = devices.join(coordinator.listen, prefix="twin")
        assert ended(older) == (
            "ALREADY_EXISTS",
            "a newer connection with the same participant id has taken the place of this one",
        )
        assert newer.ended is None
        assert coordinator.status().participants == 5
        assert violations(coordinator) == before, "a cut network is no breach"


@pytest.mark.timed
@pytest.mark.parametrize("way", ["run", "reduce"])
def test_half_a_chunked_answer_and_then_silence_ends_with_the_calls_timeout(
    coordinator: Coordinator[Echo], devices: Devices, way: str
) -> None:
    with nobody_else_suffers(coordinator, devices):
        (device,) = devices.join(coordinator.listen, prefix="culprit", role="culprit")
        devices.join(coordinator.listen, 2, prefix="partner", role="culprit")
        cohort = coordinator.get_participants(3, timeout=20, where={"role": "culprit"})
        ones = {"x": np.ones(2)}
        messages = [tensors(ones, hold=proxy.id == "culprit-0") for proxy in cohort]
        timeout = 0.5
        with ThreadPoolExecutor(1) as threads:
            began_at = time.monotonic()
            if way == "run":
                call: Future[Any] = threads.submit(cohort.run, messages, timeout=timeout)
            else:
                call = threads.submit(cohort.reduce, messages, "sum", timeout=timeout)
            assert device.holding.wait(20)
            device.send(chunk(bytes(4096), total=8 * 2**20))
            outcome = call.result(20)
            took = time.monotonic() - began_at
        assert [proxy.id for proxy in outcome.timed_out] == ["culprit-0"]
        assert timeout <= took < timeout + 0.1
        assert len(outcome.results if way == "run" else outcome.answered) == 2
        if way == "reduce":
            assert np.array_equal(outcome.tensors["x"], 2 * ones["x"])


@pytest.mark.parametrize("script", [strangers.http1, strangers.tls, strangers.noise])
@pytest.mark.parametrize("port", ["participants", "control"])
def test_what_is_no_http2_is_cut_off_at_once(
    coordinator: Coordinator[Echo], devices: Devices, script: strangers.Script, port: str
) -> None:
    address = coordinator.listen if port == "participants" else coordinator.control
    with nobody_else_suffers(coordinator, devices):
        began_at = time.monotonic()
        heard = devices.run(strangers.visit(address, script(random.Random(1), http2.CONNECT), patience=15))
        assert time.monotonic() - began_at < 15, "it was kept until the handshake's time was over, or longer"
        assert heard[3:4] in (b"", bytes([http2.SETTINGS])), "an HTTP/2 server says only what it is"


def test_an_unknown_method_is_unimplemented(coordinator: Coordinator[Echo], devices: Devices) -> None:
    async def call() -> tuple[grpc.StatusCode, str]:
        async with grpc.aio.insecure_channel(coordinator.listen) as channel:
            stream: Any = channel.stream_stream("/muster.control.v1.Control/Attach")()
            return await stream.code(), await stream.details() or ""

    assert devices.run(call()) == (grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


def test_a_script_of_another_control_version_is_told_what_to_do(
    coordinator: Coordinator[Echo], devices: Devices
) -> None:
    async def call() -> tuple[grpc.StatusCode, str]:
        async with grpc.aio.insecure_channel(coordinator.control) as channel:
            stream: Any = channel.stream_stream(
                http2.ATTACH, request_serializer=control_pb2.ClientBatch.SerializeToString
            )()
            await stream.write(control_pb2.ClientBatch(version=99))
            return await stream.code(), await stream.details() or ""

    assert devices.run(call()) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "control version 99 was offered, 1 is spoken here; install the same version of muster on both sides",
    )
    eventually(lambda: coordinator.status().attached == 0)


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (control_pb2.ClientBatch(calls=[control_pb2.StartCall(id=1, quorum=0)]), "call 1: a quorum of 0"),
        (
            control_pb2.ClientBatch(
                acquires=[control_pb2.Acquire(id=7, min_participants=2, max_participants=1)]
            ),
            "request 7: a maximum of 1 participants",
        ),
    ],
)
def test_a_script_that_asks_for_nonsense_is_told_so(
    coordinator: Coordinator[Echo], devices: Devices, batch: control_pb2.ClientBatch, text: str
) -> None:
    async def call() -> tuple[grpc.StatusCode, str]:
        async with grpc.aio.insecure_channel(coordinator.control) as channel:
            stream: Any = channel.stream_stream(
                http2.ATTACH, request_serializer=control_pb2.ClientBatch.SerializeToString
            )()
            await stream.write(control_pb2.ClientBatch(version=1))
            await stream.read()
            await stream.write(batch)
            return await stream.code(), await stream.details() or ""

    with nobody_else_suffers(coordinator, devices):
        assert devices.run(call()) == (grpc.StatusCode.INVALID_ARGUMENT, text)
