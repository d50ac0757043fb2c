"""Uploads that come, stand still, are moved, finished, dropped and waited for in any order: the room they
take is always what it should be, and what was written comes back.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from manager.payloads.blobs import CAN_SHARE, Blob
from manager.payloads.spool import NoRoomError, Spool, Upload
from tests.support import collect_garbage

MEMORY, DISK, MOST_FILES = 100, 300, 4


class Sender:
    """One message on its way: waiting for room, arriving, or whole."""

    def __init__(self, size: int, task: asyncio.Task[Any]) -> None:
        self.size = size
        self.task = task
        self.written = b""
        self.upload: Upload | None = None
        self.failed = False

    @property
    def in_memory(self) -> bool:
        return self.upload is not None and self.upload._in_memory


class SpoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patches: list[Any] = [
            patch("manager.payloads.spool.SHARE_SIZE", 1),
            patch("manager.payloads.spool.SPARE_DISK", 0),
            patch("manager.payloads.spool.MOST_FILES", MOST_FILES),
            patch("manager.payloads.spool.PATIENCE", 1e9),  # time passes by a rule
        ]
        for each in self.patches:
            each.start()
        self.directory = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.spool: Spool = self.runner.run(self.make())
        self.waiting: list[Sender] = []
        self.arriving: list[Sender] = []
        self.whole: list[tuple[Blob, bytes, bool]] = []  # and whether it is in memory

    async def make(self) -> Spool:
        return Spool(MEMORY, DISK, directory=Path(self.directory.name))

    def settle(self) -> None:
        async def moment() -> None:
            for _ in range(3):
                await asyncio.sleep(0)

        self.runner.run(moment())
        for sender in list(self.waiting):
            if sender.task.done():
                self.waiting.remove(sender)
                sender.upload = sender.task.result()
                del sender.task
                self.arriving.append(sender)

    # What senders do

    @rule(size=st.integers(1, MEMORY + 60))
    def ask(self, size: int) -> None:
        async def begin() -> asyncio.Task[Any]:
            return asyncio.create_task(self.spool.room(size))

        self.waiting.append(Sender(size, self.runner.run(begin())))
        self.settle()

    @precondition(lambda self: self.arriving)
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        sender = data.draw(st.sampled_from(self.arriving))
        assert sender.upload is not None
        piece = data.draw(st.binary(min_size=0, max_size=sender.size - len(sender.written)))
        sender.upload.add(piece)
        sender.written += piece
        self.settle()

    @precondition(lambda self: self.arriving)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        sender = data.draw(st.sampled_from(self.arriving))
        self.arriving.remove(sender)
        assert sender.upload is not None
        rest = bytes(sender.size - len(sender.written))
        sender.upload.add(rest)
        in_memory = sender.in_memory
        try:
            blob: Any = sender.upload.finish()
        except NoRoomError:
            blob = None
        sender.upload = None
        if blob is not None:
            self.whole.append((blob, sender.written + rest, in_memory))
            del blob
        self.settle()

    @precondition(lambda self: self.arriving or self.whole)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.arriving) + len(self.whole) - 1))
        if number < len(self.arriving):
            self.arriving.pop(number).upload = None  # whoever else still knows the sender
        else:
            self.whole.pop(number - len(self.arriving))
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def stop_waiting(self, data: st.DataObject) -> None:
        sender = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        sender.task.cancel()
        del sender
        self.settle()

    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        """Some have stood still, the others haven't."""
        waited = bool(self.waiting)
        still = [sender for sender in self.arriving if sender.in_memory and data.draw(st.booleans())]
        for sender in still:
            assert sender.upload is not None
            sender.upload.moved_at = float("-inf")

        async def look() -> None:
            self.spool._make_room()

        self.runner.run(look())
        for sender in still:
            assert sender.in_memory is not waited, (
                "moved though nobody waited, or not moved though somebody did"
            )
        self.settle()

    # What must hold

    @invariant()
    def what_is_taken_is_what_there_is(self) -> None:
        kept = sum(sender.size for sender in self.arriving if sender.in_memory)
        kept += sum(len(blob) for blob, _, in_memory in self.whole if in_memory)
        assert self.spool.free == MEMORY - kept
        on_disk = sum(
            sender.upload._written
            for sender in self.arriving
            if sender.upload is not None and not sender.in_memory and sender.upload._descriptor >= 0
        )
        on_disk += sum(len(blob) for blob, _, in_memory in self.whole if not in_memory)
        assert self.spool.on_disk == on_disk
        assert 0 <= self.spool.free <= MEMORY
        assert self.spool.on_disk <= DISK
        assert self.spool._files <= MOST_FILES

    @invariant()
    def nobody_waits_who_could_go_on(self) -> None:
        if self.waiting:
            assert self.waiting[0].size > self.spool.free

    @invariant()
    def what_is_whole_is_what_was_sent(self) -> None:
        for blob, sent, _ in self.whole:
            assert bytes(blob.view()) == sent

    def teardown(self) -> None:
        for sender in self.waiting:
            sender.task.cancel()
        self.waiting.clear()
        for sender in self.arriving:
            sender.upload = None
        self.whole.clear()
        self.settle()
        assert (self.spool.free, self.spool.on_disk, self.spool._files) == (MEMORY, 0, 0)
        self.runner.close()
        collect_garbage()
        assert not list(Path(self.directory.name).iterdir())
        self.directory.cleanup()
        for each in self.patches:
            each.stop()


TestSpool = pytest.mark.skipif(not CAN_SHARE, reason="no shared memory here")(SpoolMachine.TestCase)
TestSpool.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
