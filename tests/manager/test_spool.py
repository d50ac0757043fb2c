"""Where large answers are kept: in memory up to a limit, the slow ones on disk, and nowhere once nobody wants
them.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import shutil
import weakref
from collections.abc import Callable, Coroutine, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

import pytest

from manager.payloads.blobs import CAN_SHARE, Blob, Payload, open_shared
from manager.payloads.spool import SPARE_DISK, NoRoomError, Spool
from protos.chunks import Store
from protos.frames import Shared
from tests.support import collect_garbage

pytestmark = pytest.mark.skipif(not CAN_SHARE, reason="no memory that processes can share on this platform")

P = ParamSpec("P")


class Usage(NamedTuple):
    free: int


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small messages are kept as bytes; in these tests none counts as small."""
    monkeypatch.setattr("manager.payloads.spool.SHARE_SIZE", 1)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """No descriptors, and no files."""
    collect_garbage()
    before = open_descriptors()
    yield
    gc.collect()
    assert open_descriptors() == before
    assert list(tmp_path.iterdir()) == []


def on_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


async def a_moment() -> None:
    """Lets happen what is due."""
    gc.collect()
    for _ in range(3):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


def fill(upload: Store[Payload], content: bytes, piece: int = 1000) -> Blob:
    for start in range(0, len(content), piece):
        upload.add(memoryview(content)[start : start + piece])
    whole = upload.finish()
    assert isinstance(whole, Blob)
    return whole


async def kept(spool: Spool, content: bytes) -> Blob:
    return fill(await spool.room(len(content)), content)


def names_in(directory: Path) -> list[str]:
    return [entry.name for entry in directory.iterdir()]


def on_disk(blob: Blob, directory: Path) -> bool:
    return str(Path(f"/proc/self/fd/{blob.descriptor}").readlink()).startswith(str(directory))


@on_a_loop
async def test_what_arrives_is_kept_in_memory(tmp_path: Path) -> None:
    spool = Spool(memory=5000, disk=10**9, directory=tmp_path)
    content = os.urandom(3000)
    blob = await kept(spool, content)
    assert blob.view() == content
    assert len(blob) == 3000
    assert blob.head() == content[:16]
    assert not on_disk(blob, tmp_path)
    assert spool.free == 2000
    assert open_shared(os.getpid(), Shared(blob.descriptor, 3000), sealed=True).view() == content


@on_a_loop
async def test_memory_is_free_again_with_the_last_reference(tmp_path: Path) -> None:
    spool = Spool(memory=5000, disk=10**9, directory=tmp_path)
    first, second = await kept(spool, bytes(2000)), await kept(spool, bytes(3000))
    again = first
    del first
    await a_moment()
    assert spool.free == 0
    del again
    await a_moment()
    assert spool.free == 2000
    del second
    await a_moment()
    assert spool.free == 5000


@on_a_loop
async def test_the_last_reference_may_go_in_another_thread_or_when_the_loop_is_closed(tmp_path: Path) -> None:
    spool = Spool(memory=5000, disk=10**9, directory=tmp_path)
    blobs = [await kept(spool, bytes(2000))]
    await asyncio.to_thread(blobs.clear)
    await a_moment()
    assert spool.free == 5000

    async def elsewhere() -> Blob:
        return await kept(Spool(memory=5000, disk=10**9, directory=tmp_path), bytes(10))

    blob = await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
    assert blob.view() == bytes(10)
    del blob


@on_a_loop
async def test_what_never_fits_into_memory_goes_to_disk_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(memory=5000, disk=10**9, directory=tmp_path)
    content = os.urandom(6000)
    with caplog.at_level(logging.INFO, "muster.spool"):
        blobs = [await kept(spool, content) for _ in range(3)]
    for blob in blobs:
        assert on_disk(blob, tmp_path)
        assert blob.view() == content
        assert blob.head() == content[:16]
        assert open_shared(os.getpid(), Shared(blob.descriptor, 6000)).view() == content
    assert names_in(tmp_path) == [], "a file that has a name"
    assert spool.free == 5000, "what is on disk takes no memory"
    assert [str(tmp_path) in record.getMessage() for record in caplog.records] == [True], "said once"


@on_a_loop
async def test_who_finds_no_room_waits_for_it_in_turn(tmp_path: Path) -> None:
    spool = Spool(memory=5000, disk=10**9, directory=tmp_path)
    first = await kept(spool, bytes(4000))
    large = asyncio.ensure_future(spool.room(3000))
    small = asyncio.ensure_future(spool.room(500))  # it would fit, but is behind the other
    await a_moment()
    assert not large.done()
    assert not small.done()
    del first
    content = os.urandom(3000)
    async with asyncio.timeout(20):
        assert not on_disk(fill(await large, content), tmp_path)
        assert fill(await small, bytes(500)).view() == bytes(500)
    del large, small
    await a_moment()
    assert spool.free == 5000


@on_a_loop
async def test_what_stands_still_is_moved_to_disk_while_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manager.payloads.spool.PATIENCE", 0.02)
    spool = Spool(memory=5000, disk=10**9, directory=tmp_path)
    content = os.urandom(4000)
    slow = await spool.room(4000)
    slow.add(content[:1500])
    async with asyncio.timeout(20):
        quick = await kept(spool, bytes(3000))
    assert not on_disk(quick, tmp_path)
    assert spool.free == 2000
    slow.add(content[1500:2500])
    slow.add(content[2500:])
    blob = slow.finish()
    assert isinstance(blob, Blob)
    assert on_disk(blob, tmp_path)
    assert blob.view() == content
    assert names_in(tmp_path) == []


@on_a_loop
async def test_what_stands_still_may_stay_while_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manager.payloads.spool.PATIENCE", 0.0)
    spool = Spool(memory=5000, disk=10**9, directory=tmp_path)
    slow = await spool.room(4000)
    await a_moment()
    assert not on_disk(fill(slow, bytes(4000)), tmp_path)


@on_a_loop
async def test_what_cannot_be_moved_is_refused_and_frees_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manager.payloads.spool.PATIENCE", 0.02)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0))
    spool = Spool(memory=5000, disk=10**9, directory=tmp_path)
    slow = await spool.room(4000)
    slow.add(bytes(1000))
    async with asyncio.timeout(20):
        await kept(spool, bytes(3000))
    slow.add(bytes(3000))
    with pytest.raises(NoRoomError, match="bytes left"):
        slow.finish()
    await a_moment()
    assert spool.free == 5000


@pytest.mark.parametrize("memory", [3000, 5000], ids=["on disk", "in memory"])
@on_a_loop
async def test_dropping_what_has_arrived_half_way_frees_everything(tmp_path: Path, memory: int) -> None:
    spool = Spool(memory=memory, disk=10**9, directory=tmp_path)
    before = open_descriptors()
    upload = await spool.room(4000)
    upload.add(bytes(2000))
    assert open_descriptors() == before + 1
    del upload
    await a_moment()
    assert open_descriptors() == before
    assert spool.free == memory


@on_a_loop
async def test_who_stops_waiting_costs_nobody_anything(tmp_path: Path) -> None:
    spool = Spool(memory=5000, disk=10**9, directory=tmp_path)
    first = await kept(spool, bytes(4000))
    waiting = asyncio.ensure_future(spool.room(3000))
    behind = asyncio.ensure_future(spool.room(500))
    await a_moment()
    waiting.cancel()
    await a_moment()
    assert behind.done(), "there is room for it now"
    fill(behind.result(), bytes(500))
    del first, behind
    await a_moment()
    assert spool.free == 5000


@pytest.mark.parametrize("who", [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]])
@on_a_loop
async def test_whoever_stops_waiting_the_others_get_room_in_turn(tmp_path: Path, who: list[int]) -> None:
    spool = Spool(memory=5000, disk=10**9, directory=tmp_path)
    first = [await kept(spool, bytes(5000))]
    waiting = [asyncio.ensure_future(spool.room(size)) for size in (3000, 4000, 5000)]
    await a_moment()
    for number in who:
        waiting[number].cancel()
    first.clear()
    for number, each in enumerate(waiting):
        if number in who:
            await asyncio.wait([each])
            assert each.cancelled()
        else:
            async with asyncio.timeout(20):
                upload = await each
            assert not on_disk(fill(upload, bytes(3000 + 1000 * number)), tmp_path)
            del upload
    del each
    waiting.clear()
    await a_moment()
    assert spool.free == 5000


@on_a_loop
async def test_an_upload_is_kept_alive_by_whoever_has_it_alone(tmp_path: Path) -> None:
    spool = Spool(memory=5000, disk=10**9, directory=tmp_path)
    upload = await spool.room(3000)
    reference = weakref.ref(upload)
    del upload
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("turns", [0, 1, 2])
@on_a_loop
async def test_who_stops_waiting_just_when_there_is_room_costs_nobody_anything(
    tmp_path: Path, turns: int
) -> None:
    spool = Spool(memory=5000, disk=10**9, directory=tmp_path)
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    first = [await kept(spool, bytes(4000))]
    waiting = asyncio.ensure_future(spool.room(3000))
    await a_moment()
    first.clear()
    for _ in range(turns):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    del waiting
    await a_moment()
    assert errors == []
    assert spool.free == 5000


@on_a_loop
async def test_a_disk_with_too_little_room_refuses_it_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(memory=1000, disk=10**9, directory=tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(SPARE_DISK + 3999))
    upload = await spool.room(4000)
    upload.add(bytes(4000))  # it is read all the same
    with pytest.raises(NoRoomError, match=r"no room for its answer of 4000 bytes: .* bytes left"):
        upload.finish()
    assert spool.free == 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(SPARE_DISK + 4000))
    assert len(await kept(spool, bytes(4000))) == 4000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0))
    assert len(await kept(spool, bytes(1000))) == 1000, "what fits into memory needs no disk"


@on_a_loop
async def test_a_directory_that_is_not_there_refuses_it_in_words(tmp_path: Path) -> None:
    spool = Spool(memory=0, disk=10**9, directory=tmp_path / "missing")
    upload = await spool.room(10)
    upload.add(bytes(10))
    with pytest.raises(NoRoomError, match="No such file"):
        upload.finish()


@pytest.mark.parametrize("memory", [3000, 5000], ids=["on disk", "in memory"])
@on_a_loop
async def test_a_write_that_fails_refuses_it_and_frees_everything_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    spool = Spool(memory=memory, disk=10**9, directory=tmp_path)
    upload = await spool.room(4000)
    upload.add(bytes(1000))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("manager.payloads.spool.write", full)
        upload.add(bytes(1000))
    await a_moment()
    assert spool.free == memory
    upload.add(bytes(2000))  # there is room again, but not all of it came in
    with pytest.raises(NoRoomError, match="No space left"):
        upload.finish()
    del upload
    await a_moment()
    assert spool.free == memory


@on_a_loop
async def test_memory_that_cannot_be_had_is_refused_and_stays_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(memory=5000, disk=10**9, directory=tmp_path)

    def none(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", none)
        upload = await spool.room(4000)
    upload.add(bytes(4000))
    with pytest.raises(NoRoomError, match="Too many open files"):
        upload.finish()
    await a_moment()
    assert spool.free == 5000


@on_a_loop
async def test_where_nothing_can_be_shared_it_keeps_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manager.payloads.spool.CAN_SHARE", False)
    spool = Spool(memory=10, disk=10**9, directory=tmp_path)
    upload = await spool.room(20)
    upload.add(b"0123456789")
    upload.add(memoryview(b"abcdefghij"))
    assert upload.finish() == b"0123456789abcdefghij"
    assert spool.free == 10


@on_a_loop
async def test_what_is_too_small_to_be_shared_is_kept_as_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manager.payloads.spool.SHARE_SIZE", 11)
    spool = Spool(memory=20, disk=10**9, directory=tmp_path)
    upload = await spool.room(10)
    upload.add(b"0123456789")
    assert spool.free == 20
    assert upload.finish() == b"0123456789"
    assert isinstance(await kept(spool, bytes(11)), Blob)


@on_a_loop
async def test_what_has_come_to_the_disk_counts_and_not_what_was_announced(tmp_path: Path) -> None:
    spool = Spool(memory=1000, disk=10_000, directory=tmp_path)
    announced = [await spool.room(9000) for _ in range(5)]
    assert spool.on_disk == 0
    first, second, *_ = announced
    first.add(bytes(9000))
    assert spool.on_disk == 9000
    second.add(bytes(1000))
    second.add(bytes(1))  # one too many
    second.add(bytes(7999))  # is read all the same
    await a_moment()
    assert spool.on_disk == 9000, "one that failed takes no room"
    with pytest.raises(
        NoRoomError, match=r"answers take 10000 bytes of the disk, and may take 10000 \(--upload-disk\)"
    ):
        second.finish()
    blob = first.finish()
    del first, announced
    await a_moment()
    assert spool.on_disk == 9000, "it is kept"
    del blob
    await a_moment()
    assert spool.on_disk == 0


@on_a_loop
async def test_what_is_moved_from_memory_to_disk_counts_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manager.payloads.spool.PATIENCE", 0.01)
    spool = Spool(memory=5000, disk=3000, directory=tmp_path)
    slow, slower = await spool.room(2500), await spool.room(2500)
    slow.add(bytes(2000))
    slower.add(bytes(2000))
    last = await spool.room(5000)
    assert spool.free == 0
    assert spool.on_disk == 2000, "there is room for one of them"
    slow.add(bytes(500))
    slower.add(bytes(500))
    ends = []
    for upload in (slow, slower):
        try:
            ends.append(len(upload.finish()))
        except NoRoomError:
            ends.append(0)
    assert sorted(ends) == [0, 2500]
    del slow, slower, upload, last
    await a_moment()
    assert (spool.free, spool.on_disk) == (5000, 0)


@on_a_loop
async def test_so_many_files_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manager.payloads.spool.MOST_FILES", 2)
    spool = Spool(memory=0, disk=10**9, directory=tmp_path)
    uploads = [await spool.room(10) for _ in range(3)]
    for upload in uploads:
        upload.add(bytes(10))
    first = uploads[0].finish()
    with pytest.raises(NoRoomError, match="2 answers on disk, as many as there may be"):
        uploads[2].finish()
    del first, upload, uploads
    await a_moment()
    assert len(await kept(spool, bytes(10))) == 10
