"""A slow or stalled participant costs nobody else anything."""

from __future__ import annotations

import pytest

from manager.limits import Limits
from protos import stream_pb2
from tests.process.conftest import Served
from tests.support import PATIENCE, Devices, instruction

pytestmark = pytest.mark.usefixtures("coordinator")  # up before the first test, down after the last

UPLOAD = 9 * 1024 * 1024

BEGINNING = stream_pb2.ParticipantMessage(
    chunk=stream_pb2.Chunk(total_size=UPLOAD, data=bytes(4096))
).SerializeToString()
"""The first chunk of a large answer, of which nothing else will come."""


def test_uploads_that_stall_leave_room_for_those_that_do_not(served: Served, devices: Devices) -> None:
    stalling = 2 * Limits().upload_memory // UPLOAD + 2  # all the memory of two workers, and more
    devices.join(served.address, stalling, prefix="stalling", kind="stalling")
    devices.join(served.address, 3, prefix="swift", kind="swift")
    slow = served.manager.get_participants(stalling, where={"kind": "stalling"}, timeout=20)
    swift = served.manager.get_participants(3, where={"kind": "swift"}, timeout=20)
    with slow.stream(instruction("raw", BEGINNING)) as answers:
        outcome = swift.run(instruction("echo", bytes(UPLOAD)), timeout=3 * PATIENCE)
        assert len(outcome.results) == 3, str(outcome)
        reduced = swift.reduce(instruction("echo", bytes(UPLOAD)), timeout=3 * PATIENCE)
        assert len(reduced.folded) == 3, str(reduced)
        assert answers.progress.answered == 0


def test_a_small_call_does_not_wait_for_a_large_one(served: Served, devices: Devices) -> None:
    large, small = devices.join(served.address, 2)
    cohort = served.manager.get_participants(2, timeout=20)
    big, little = sorted(cohort, key=lambda proxy: proxy.id)
    assert (big.id, little.id) == (large.id, small.id)
    payload = bytes(64 * 1024 * 1024)
    with cohort.stream({big: instruction("hold", payload)}) as answers:
        for number in range(5):
            assert little.echo(b"%d" % number, timeout=20) == b"%d" % number
        assert answers.progress.answered == 0
        large.release()
        for number in range(5):  # while the answer is on its way, as a rule
            assert little.echo(b"%d" % number, timeout=20) == b"%d" % number
        assert [message.result.payload == payload for _, message in answers] == [True]
