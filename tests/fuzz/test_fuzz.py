"""A short run of the fuzzer, that it finds what it should, and messages made to be slow or to fill memory."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
from click.testing import CliRunner

from manager.payloads.blobs import view_of
from manager.serving.incoming import checked
from manager.usage import resident_bytes
from protos import stream_pb2
from protos.chunks import MAX_FRAME_SIZE, varint
from protos.envelope import Kind, MalformedMessageError
from protos.parsing import check_result
from protos.sliced import read_result
from protos.tensors import TensorError
from tests.fuzz import corpus, loop, targets
from tests.fuzz.__main__ import main
from tests.fuzz.wire import put_together
from tests.support import collect_garbage

SECONDS = 2.0
"""CPU time that one message may take of an event loop: less than the time after which a worker is taken for
dead."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_frames_of_all_kinds_raise_nothing_but_what_is_documented() -> None:
    report = loop.run(15_000, seed=int(time.time()) >> 8)
    assert report.frames == 15_000
    for name, fed in report.fed.items():
        assert fed // 20 < report.accepted[name] < fed // 2, f"{name}: not the right mixture: {report}"


def test_the_command_runs_and_says_what_it_did() -> None:
    done = CliRunner().invoke(main, ["--frames=500", "--seed=7"])
    assert done.exit_code == 0
    assert "seed 7" in done.output
    assert "500 frames" in done.output


def test_a_reader_that_raises_something_else_is_found_and_the_frame_is_shown() -> None:
    broken = mock.patch.object(targets, "check_report", side_effect=KeyError("broken"))
    with broken:
        done = CliRunner().invoke(main, ["--frames=500", "--seed=7"])
    assert done.exit_code == 1
    assert "FOUND: seed 7, frame" in done.output
    assert "KeyError('broken')" in done.output


def test_a_reader_that_lets_through_what_it_should_not_is_found() -> None:
    with mock.patch.object(targets, "check_orders"), pytest.raises(loop.FindingError, match="downward"):
        loop.run(15_000, seed=7)
    with mock.patch.object(targets, "check_report"), pytest.raises(loop.FindingError, match="upward"):
        loop.run(15_000, seed=7)


def test_the_valid_messages_survive_being_taken_apart() -> None:
    link = [message for message, _ in corpus.UPWARD + corpus.DOWNWARD]
    for message in [*corpus.PARTICIPANTS, *corpus.SERVERS, *link]:
        assert put_together(corpus.apart(message)) == message.SerializeToString(deterministic=True)


def result(content: bytes) -> bytes:
    return b"\x12" + varint(len(content)) + content


def tensor(content: bytes) -> bytes:
    return b"\x1a" + varint(len(content)) + content


LARGE = 24 * 2**20

BOMBS: dict[str, Callable[[], bytes]] = {
    "as many empty tensors as fit into a message": lambda: result(b"\x1a\x00" * 2_000_000),
    "tensors with names of their own": lambda: result(
        b"".join(tensor(b"\x0a\x08%08d\x10\x02" % number) for number in range(240_000))
    ),
    "metrics": lambda: result(
        b"".join(b"\x12\x0c\x0a\x08%08d\x12\x00" % number for number in range(290_000))
    ),
    "one field, ever again": lambda: result(b"\x0a\x00" * 2_000_000),
    "fields of a later version": lambda: result(b"\x78\x01" * 2_000_000),
    "a shape of a hundred thousand lengths": lambda: result(
        tensor(b"\x10\x02\x1a" + varint(900_000) + (b"\xff" * 8 + b"\x7f") * 100_000)
    ),
    "a shape, length by length": lambda: result(tensor(b"\x18\x01" * 2_000_000)),
    "groups in groups": lambda: result(b"\x7b" * 2_000_000),
    "in chunks: millions of empty tensors": lambda: result(b"\x1a\x00" * (LARGE // 2)),
    "in chunks: the same behind an unknown field": lambda: result(b"\x78\x01" + b"\x1a\x00" * (LARGE // 2)),
    "in chunks: the same behind what is not canonical": lambda: result(
        b"\x0a\x80\x00" + b"\x1a\x00" * (LARGE // 2)
    ),
    "in chunks: a tensor of millions of fields": lambda: result(tensor(b"\x18\x01" * (LARGE // 2))),
}


@pytest.mark.parametrize("name", BOMBS)
def test_no_message_stops_a_worker_or_fills_its_memory(name: str) -> None:
    bomb = BOMBS[name]()
    assert len(bomb) <= MAX_FRAME_SIZE or name.startswith("in chunks")
    collect_garbage()
    level, began_at = resident_bytes(), time.thread_time()
    answer = bytes(view_of(checked(bomb, Kind.RESULT)))
    assert time.thread_time() - began_at < SECONDS
    assert answer == bomb or stream_pb2.ParticipantMessage.FromString(answer).HasField("failure")
    began_at = time.thread_time()
    with contextlib.suppress(MalformedMessageError, TensorError):
        read_result(bomb)
    assert time.thread_time() - began_at < SECONDS
    del answer
    assert resident_bytes() - level < 250 * 2**20, "protobuf makes a hundred bytes of two"


def test_many_tensors_are_no_bomb() -> None:
    content = b"".join(
        tensor(b"\x0a\x05%05d\x10\x02\x1a\x01\x02\x22\x08" % number + bytes(8)) for number in range(50_000)
    )
    message = result(content + b"\x2a" + varint(LARGE) + bytes(LARGE))
    check_result(message)
    _, arrays = read_result(message)
    assert len(arrays) == 50_000
