"""Payloads that other processes read: round trips, what is refused, and that nothing is left open."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from manager.payloads.blobs import (
    CAN_SHARE,
    HEAD,
    MANY_DESCRIPTORS,
    SHARE_SIZE,
    Blob,
    Sample,
    anonymous_memory,
    can_open,
    open_shared,
    seal,
    share,
    view_of,
    write,
)
from protos import link_pb2
from protos.frames import Shared
from tests.support import collect_garbage

pytestmark = pytest.mark.skipif(not CAN_SHARE, reason="no memory that processes can share on this platform")


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone will do


def mapped() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:muster")


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    collect_garbage()
    before = len(descriptors()), mapped()
    yield
    gc.collect()
    assert (len(descriptors()), mapped()) == before


def elsewhere(code: str, *arguments: object) -> str:
    """What another process prints that runs this code."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


OPEN = """
import sys
from manager.payloads.blobs import open_shared
from protos.frames import Shared
pid, descriptor, size, sealed = map(int, sys.argv[1:])
try:
    blob = open_shared(pid, Shared(descriptor, size), sealed=bool(sealed))
except OSError as error:
    print("OSError:", error)
else:
    view = blob.view()
    print(len(blob), view.readonly, sum(view) % 65521, bytes(view[:4]).hex())
"""


@pytest.mark.parametrize("size", [0, 1, HEAD, 4095, 4096, 4097, 3 * 2**20])
def test_the_content_comes_back(size: int) -> None:
    content = os.urandom(size)
    blob = Blob.of(content)
    assert len(blob) == blob.size == size
    assert blob.view() == content
    assert blob.view().readonly
    assert blob.head() == content[:HEAD]
    blob.settle()
    assert blob.view() == content
    assert Blob.of(memoryview(content)).view() == content


def test_the_head_is_read_without_mapping_it() -> None:
    before = mapped()
    blob = Blob.of(b"0123456789abcdefghi")
    assert blob.head() == b"0123456789abcdef"
    assert mapped() == before


def settles(blob: Blob, *, descriptors_given_back: int) -> None:
    before = len(descriptors())
    blob.settle()
    assert blob.descriptor == -1
    assert len(descriptors()) == before - descriptors_given_back
    assert blob.head() == b"content of it"
    blob.settle()
    assert bytes(blob.view()) == b"content of it"
    assert blob.view().readonly
    assert len(descriptors()) == before - descriptors_given_back


def test_settling_gives_the_descriptor_back_and_keeps_the_content() -> None:
    # Before Python 3.13 a mapping keeps one of its own, for as long as it lives.
    settles(Blob.of(b"content of it"), descriptors_given_back=int(sys.version_info >= (3, 13)))


def test_settling_costs_no_descriptor_where_many_are_open() -> None:
    blob = Blob.of(b"content of it")
    high = fcntl.fcntl(blob.descriptor, fcntl.F_DUPFD_CLOEXEC, MANY_DESCRIPTORS)
    del blob
    settles(Blob(high, 13), descriptors_given_back=1)


def test_the_number_from_which_on_it_is_copied_is_that_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = [Blob.of(b"content of it") for _ in range(2)]
    monkeypatch.setattr("manager.payloads.blobs.MANY_DESCRIPTORS", blobs[0].descriptor + 1)
    assert blobs[1].descriptor >= blobs[0].descriptor + 1
    before = mapped()
    for blob in blobs:
        blob.settle()
    assert mapped() - before == (2 if sys.version_info >= (3, 13) else 1)


def test_what_is_looked_at_already_stays_mapped_when_it_settles() -> None:
    blob = Blob.of(b"content of it")
    high = Blob(fcntl.fcntl(blob.descriptor, fcntl.F_DUPFD_CLOEXEC, MANY_DESCRIPTORS), 13)
    view = high.view()
    high.settle()
    assert high.view() is view
    assert high.head() == b"content of it"


def test_a_view_outlives_its_blob() -> None:
    view = Blob.of(b"content of it").view()
    gc.collect()
    assert bytes(view) == b"content of it"


def test_the_last_reference_closes_it() -> None:
    before = len(descriptors())
    blob = Blob(anonymous_memory(), 0)
    assert len(descriptors()) == before + 1
    del blob
    assert len(descriptors()) == before


def test_whoever_wants_its_descriptor_gets_it_once() -> None:
    descriptor = anonymous_memory()
    write(descriptor, b"xyz")
    left: list[int] = []
    blob = Blob(descriptor, 3, left.append)
    blob.settle()
    assert left == [descriptor]
    del blob
    assert left == [descriptor]
    os.close(descriptor)


def test_nobody_can_change_what_is_sealed() -> None:
    blob = Blob.of(b"content")
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(blob.descriptor, b"X", 0)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(blob.descriptor, 3)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(blob.descriptor, 30)
    with pytest.raises(OSError, match="not permitted"):
        fcntl.fcntl(blob.descriptor, fcntl.F_ADD_SEALS, 0)


def test_its_descriptor_is_not_inherited() -> None:
    blob = Blob.of(b"content")
    assert not os.get_inheritable(blob.descriptor)


def test_another_process_reads_it() -> None:
    content = os.urandom(2**20)
    blob = Blob.of(content)
    said = elsewhere(OPEN, os.getpid(), blob.descriptor, len(content), 1)
    assert said == f"{len(content)} True {sum(content) % 65521} {content[:4].hex()}"


def test_another_process_is_told_what_it_cannot_open() -> None:
    blob = Blob.of(b"content")
    assert "has 7 bytes, not 8" in elsewhere(OPEN, os.getpid(), blob.descriptor, 8, 1)
    assert "No such file" in elsewhere(OPEN, os.getpid(), 9999, 7, 1)
    assert "No such file" in elsewhere(OPEN, 2**22 + 1, blob.descriptor, 7, 1)


def test_what_has_been_opened_outlives_its_maker() -> None:
    made = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from manager.payloads.blobs import Blob; b = Blob.of(b'of another'); "
            "print(b.descriptor, flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with made:
        assert made.stdout is not None
        shared = Shared(int(made.stdout.readline()), 10)
        blob = open_shared(made.pid, shared, sealed=True)
        made.kill()
        made.wait()
        assert bytes(blob.view()) == b"of another"
        with pytest.raises(OSError, match="No such file"):
            open_shared(made.pid, shared, sealed=True)


def test_what_is_not_sealed_is_refused_if_it_must_be() -> None:
    descriptor = anonymous_memory()
    try:
        write(descriptor, b"content")
        with pytest.raises(OSError, match="isn't sealed"):
            open_shared(os.getpid(), Shared(descriptor, 7), sealed=True)
        assert bytes(open_shared(os.getpid(), Shared(descriptor, 7)).view()) == b"content"
        seal(descriptor)
        assert bytes(open_shared(os.getpid(), Shared(descriptor, 7), sealed=True).view()) == b"content"
    finally:
        os.close(descriptor)


def test_any_other_file_is_refused_if_it_must_be_sealed() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"secrets")
        file.flush()
        with pytest.raises(OSError, match="Invalid argument"):
            open_shared(os.getpid(), Shared(file.fileno(), 7), sealed=True)


@pytest.mark.parametrize("size", [0, 7])
def test_a_pipe_is_refused_at_once_if_it_must_be_sealed(size: int) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b"content")
        with pytest.raises(OSError, match="Invalid argument"):
            open_shared(os.getpid(), Shared(reading, size), sealed=True)
        with pytest.raises(OSError, match="has 0 bytes, not 7"):
            open_shared(os.getpid(), Shared(reading, 7))
        assert os.read(reading, 100) == b"content"
    finally:
        os.close(reading)
        os.close(writing)


def test_a_named_pipe_that_nobody_writes_to_holds_nobody_up(tmp_path: Path) -> None:
    # Opening one waits for whoever writes to it, unless told not to.
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            open_shared(os.getpid(), Shared(pipe, 7), sealed=True)
        with pytest.raises(OSError, match="has 0 bytes, not 7"):
            open_shared(os.getpid(), Shared(pipe, 7))
    finally:
        os.close(pipe)


def test_a_descriptor_that_has_been_closed_is_refused() -> None:
    blob = Blob.of(b"content")
    shared = Shared(blob.descriptor, 7)
    blob.settle()
    with pytest.raises(OSError, match="No such file"):
        open_shared(os.getpid(), shared, sealed=True)


def test_small_payloads_stay_what_they_are() -> None:
    small = bytes(SHARE_SIZE - 1)
    assert share(small) is small
    large = share(bytes(SHARE_SIZE))
    assert isinstance(large, Blob)
    assert share(large) is large
    assert view_of(large) == bytes(SHARE_SIZE)
    assert view_of(small) is small


def test_without_memory_to_share_payloads_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> int:
        raise OSError(errno.ENOMEM, "no memory")

    large = bytes(SHARE_SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", none)
        assert share(large) is large
        assert Sample().message() is None
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", none)
        assert share(large) is large
    with monkeypatch.context() as patch:
        patch.setattr("manager.payloads.blobs.CAN_SHARE", False)
        assert share(large) is large
        assert Sample().message() is None


def test_a_write_may_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: whole(descriptor, bytes(data[:3])))
        blob = Blob.of(b"0123456789")
    assert bytes(blob.view()) == b"0123456789"


def test_a_process_without_stdio_gets_no_descriptor_that_means_none() -> None:
    said = elsewhere(
        "import os; os.close(0); from manager.payloads.blobs import Blob; b = Blob.of(b'x'); "
        "print(b.descriptor > 2, bytes(b.view()))"
    )
    assert said == "True b'x'"


def test_a_sample_of_another_process_can_be_opened() -> None:
    sample = Sample()
    message = sample.message()
    assert message is not None
    assert can_open(message)
    said = elsewhere(
        "import sys; from manager.payloads.blobs import can_open; from protos import link_pb2; "
        "print(can_open(link_pb2.Memory.FromString(bytes.fromhex(sys.argv[1]))))",
        message.SerializeToString().hex(),
    )
    assert said == "True"


def test_a_sample_that_is_not_what_it_is_said_to_be_cannot_be_opened() -> None:
    message = Sample().message()  # and gone
    assert message is not None
    assert not can_open(message)
    assert not can_open(link_pb2.Memory())
    sample = Sample()
    message = sample.message()
    assert message is not None
    message.content = bytes(len(message.content))
    assert not can_open(message)
