"""What is this user's alone: from the start, whatever the umask, and whoever lays links in the way."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator import private
from coordinator.private import NotPrivateError, directory, lock, settled, write


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    """Nothing but the code itself keeps others out."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Modes that files had before anything was in them."""
    modes: list[int] = []
    fdopen: Callable[..., Any] = os.fdopen

    def looking(file: int, *arguments: Any) -> Any:
        found = os.fstat(file)
        assert found.st_size == 0
        modes.append(stat.S_IMODE(found.st_mode))
        return fdopen(file, *arguments)

    monkeypatch.setattr(private.os, "fdopen", looking)  # type: ignore[attr-defined]
    return modes


# Files


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_is_private_before_anything_is_in_it(tmp_path: Path, opened: list[int], replace: bool) -> None:
    write(tmp_path / "key", b"secret", replace=replace)
    assert opened == [0o600]
    assert mode(tmp_path / "key") == 0o600
    assert (tmp_path / "key").read_bytes() == b"secret"
    assert list(tmp_path.iterdir()) == [tmp_path / "key"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_may_be_for_all_to_read(tmp_path: Path, replace: bool) -> None:
    write(tmp_path / "ca.pem", b"public", 0o644, replace=replace)
    assert mode(tmp_path / "ca.pem") == 0o644


def test_one_that_is_there_is_replaced_only_on_purpose(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write(file, b"new")
    assert file.read_bytes() == b"old"
    write(file, b"new", replace=True)
    assert (file.read_bytes(), mode(file)) == (b"new", 0o600)


def test_a_link_that_somebody_has_laid_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "of somebody").write_bytes(b"kept")
    (tmp_path / "key").symlink_to(tmp_path / "of somebody")
    with pytest.raises(FileExistsError):
        write(tmp_path / "key", b"secret")
    write(tmp_path / "key", b"secret", replace=True)
    assert (tmp_path / "of somebody").read_bytes() == b"kept"
    assert not (tmp_path / "key").is_symlink()


@pytest.mark.parametrize("replace", [False, True])
def test_what_could_not_be_written_whole_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    fdopen = os.fdopen

    def full(file: int, *arguments: Any) -> Any:
        out = fdopen(file, *arguments)
        out.write(b"half of it")
        out.close()
        raise OSError(errno.ENOSPC, "no space left on device")

    if replace:
        (tmp_path / "key").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(private.os, "fdopen", full)  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="no space"):
            write(tmp_path / "key", b"new", replace=replace)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([b"old"] if replace else [])


# Directories, and the way to them


def test_a_directory_is_private_and_so_is_none_that_leads_to_it(tmp_path: Path) -> None:
    os.umask(0o022)
    assert directory(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert mode(tmp_path / "a" / "b") == 0o700
    assert directory(tmp_path / "a" / "b") == tmp_path / "a" / "b"


def test_where_everybody_may_replace_things_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(NotPrivateError, match="everybody may replace") as caught:
        directory(tmp_path / "open" / "run")
    assert caught.value.path == tmp_path / "open"
    assert not list((tmp_path / "open").iterdir())
    (tmp_path / "open").chmod(0o1777)  # as /tmp is
    assert mode(directory(tmp_path / "open" / "run")) == 0o700


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory like /tmp."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    return tmp_path / "tmp"


@pytest.fixture
def somebody(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes all that there is until then somebody else's, as far as this process can see."""

    def leave() -> None:
        me = os.getuid() + 1
        monkeypatch.setattr(private, "_ROOT", -1)
        monkeypatch.setattr(private.os, "getuid", lambda: me)  # type: ignore[attr-defined]

    return leave


def test_what_somebody_else_has_made_in_a_shared_directory_leads_nowhere(
    shared: Path, somebody: Callable[[], None]
) -> None:
    (shared / "theirs").mkdir(0o755)
    assert settled(shared / "theirs" / "run") == shared / "theirs" / "run"
    somebody()
    with pytest.raises(NotPrivateError, match="somebody else") as caught:
        directory(shared / "theirs" / "run")
    assert caught.value.path in (shared / "theirs", *shared.parents)
    assert not list((shared / "theirs").iterdir())


def test_a_link_on_the_way_is_gone_once_for_all(shared: Path, tmp_path: Path) -> None:
    """It may be turned as soon as somebody has looked where it leads."""
    (tmp_path / "real").mkdir(0o755)
    (shared / "link").symlink_to(tmp_path / "real")
    path = directory(shared / "link" / "run")
    assert path == tmp_path / "real" / "run"
    (shared / "link").unlink()
    (shared / "link").symlink_to("/nowhere")
    assert mode(path) == 0o700


def test_a_link_to_where_somebody_else_rules_is_refused(
    shared: Path, tmp_path: Path, somebody: Callable[[], None]
) -> None:
    (shared / "theirs").mkdir(0o755)
    (tmp_path / "link").symlink_to(shared / "theirs")
    somebody()
    with pytest.raises(NotPrivateError, match="somebody else"):
        directory(tmp_path / "link" / "run")


def test_what_gets_in_the_way_while_it_is_made_is_noticed(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the making somebody puts a link where there was nothing."""
    (tmp_path / "trap").mkdir(0o755)
    mkdir = Path.mkdir

    def too_late(path: Path, *arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(Path, "mkdir", mkdir)
        (shared / "new").symlink_to(tmp_path / "trap")
        path.mkdir(*arguments, **options)

    monkeypatch.setattr(Path, "mkdir", too_late)
    with pytest.raises(NotPrivateError, match="in the way"):
        directory(shared / "new" / "run")


# Locks


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    first = lock(tmp_path / "lock")
    assert first is not None
    assert mode(tmp_path / "lock") == 0o600
    assert lock(tmp_path / "lock") is None
    first.close()
    second = lock(tmp_path / "lock")
    assert second is not None
    second.close()


def test_a_lock_neither_follows_a_link_nor_empties_a_file(tmp_path: Path) -> None:
    (tmp_path / "of somebody").write_bytes(b"kept")
    (tmp_path / "lock").symlink_to(tmp_path / "of somebody")
    with pytest.raises(OSError, match="symbolic"):
        lock(tmp_path / "lock")
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").hardlink_to(tmp_path / "of somebody")
    held = lock(tmp_path / "lock")
    assert held is not None
    held.close()
    assert (tmp_path / "of somebody").read_bytes() == b"kept"
