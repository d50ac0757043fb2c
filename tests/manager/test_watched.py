"""Files are read again once a change of them is whole, and what can't be read changes nothing."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.access.watched import MOST_PATIENCE, Watched, read_bytes, troubles


class Files:
    """Two files, and what was read of them."""

    def __init__(self, directory: Path) -> None:
        self.paths = [directory / "one", directory / "two"]
        for path in self.paths:
            path.write_text("old")
        self.reads = 0
        self.watched = Watched("the files", [str(path) for path in self.paths], self.read)

    def read(self) -> list[str]:
        self.reads += 1
        texts = [read_bytes(str(path)).decode() for path in self.paths]
        if len(set(texts)) > 1:
            raise ValueError(f"{texts[0]} and {texts[1]} don't fit")
        return texts

    def replace(self, number: int, text: str) -> None:
        new = self.paths[number].with_suffix(".new")
        new.write_text(text)
        new.replace(self.paths[number])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_files_that_stay_as_they_are_are_read_once(files: Files) -> None:
    assert not any(files.watched.look() for _ in range(10))
    assert (files.reads, files.watched.value) == (1, ["old", "old"])


def test_a_change_is_taken_once_it_has_stayed_for_a_look(files: Files) -> None:
    files.replace(0, "new")
    assert not files.watched.look()
    files.replace(1, "new")
    assert not files.watched.look()
    assert files.watched.value == ["old", "old"]
    assert files.watched.look()
    assert files.watched.value == ["new", "new"]
    assert not files.watched.look()
    assert files.reads == 2, "never half of it"


def test_a_file_that_is_written_in_place_is_not_taken_in_between(files: Files) -> None:
    """As by ``printf … > file``: for a moment it is empty."""
    for text in ("", "n", "ne"):
        for path in files.paths:
            path.write_text(text)
        assert not files.watched.look()
    for path in files.paths:
        path.write_text("new!")
    assert [files.watched.look(), files.watched.look()] == [False, True]
    assert (files.reads, files.watched.value) == (2, ["new!", "new!"])


def test_what_could_not_be_read_for_another_reason_is_read_later(
    files: Files, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without a file descriptor to spare. The file itself doesn't change any more."""
    for number in (0, 1):
        files.replace(number, "new")
    with monkeypatch.context() as scarce:

        def fail(path: Path) -> bytes:
            raise OSError(errno.EMFILE, "Too many open files")

        scarce.setattr(Path, "read_bytes", fail)
        assert not any(files.watched.look() for _ in range(5))
    (record,) = caplog.records
    assert "the files stay as they were: can't read" in record.getMessage()
    assert files.watched.look()
    assert files.watched.value == ["new", "new"]


def test_what_can_not_be_read_changes_nothing_and_is_said_once(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    files.replace(0, "new")
    assert not any(files.watched.look() for _ in range(5))
    assert files.watched.value == ["old", "old"]
    assert [record.getMessage() for record in caplog.records] == [
        "the files stay as they were: new and old don't fit"
    ]
    assert caplog.records[0].levelno == logging.ERROR
    assert troubles(None, files.watched) == ["the files stay as they were: new and old don't fit"]
    files.replace(1, "new")
    assert [files.watched.look(), files.watched.look()] == [False, True]
    assert files.watched.value == ["new", "new"]
    assert troubles(None, files.watched) == []


def test_a_file_that_is_gone_is_said_and_missed_no_longer_when_it_is_back(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    files.paths[0].unlink()
    assert not any(files.watched.look() for _ in range(5))
    assert [record.getMessage() for record in caplog.records] == [
        f"the files stay as they were: can't read {files.paths[0]}: No such file or directory"
    ]
    files.replace(0, "old")
    assert [files.watched.look(), files.watched.look()] == [False, True]


def test_a_trouble_is_over_when_the_very_file_is_back(files: Files) -> None:
    file = files.paths[0]
    file.rename(file.with_name("away"))
    assert not any(files.watched.look() for _ in range(5))
    assert troubles(files.watched) != []
    file.with_name("away").rename(file)
    assert not any(files.watched.look() for _ in range(5))
    assert troubles(files.watched) == []


def test_a_file_that_never_stays_the_same_is_taken_all_the_same(files: Files) -> None:
    for number in range(MOST_PATIENCE - 1):
        for which in range(2):
            files.replace(which, f"{number}")
        assert not files.watched.look()
    for which in range(2):
        files.replace(which, "last")
    assert files.watched.look()
    assert files.watched.value == ["last", "last"]


def test_a_link_to_another_directory_is_followed(tmp_path: Path) -> None:
    """As Kubernetes mounts secrets: a file is a link by way of a directory that is replaced as a whole."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "data").symlink_to("first")
    (tmp_path / "file").symlink_to("data/file")
    path = str(tmp_path / "file")
    watched = Watched("it", [path], lambda: read_bytes(path))
    assert watched.value == b"first"
    (tmp_path / "new").symlink_to("second")
    (tmp_path / "new").replace(tmp_path / "data")
    assert [watched.look(), watched.look()] == [False, True]
    assert watched.value == b"second"


def test_what_can_not_be_read_at_first_is_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "nothing")
    with pytest.raises(ValueError, match=f"can't read {path}: No such file or directory"):
        Watched("it", [path], lambda: read_bytes(path))


@given(st.lists(st.sampled_from(["first", "second", "look"]), max_size=40))
def test_in_the_end_what_is_there_is_what_is_used(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    files = Files(tmp_path_factory.mktemp("watched"))
    for number, step in enumerate(steps):
        if step == "look":
            files.watched.look()
            assert len(set(files.watched.value)) == 1
        else:
            files.replace(["first", "second"].index(step), f"text {number}")
    for which in range(2):
        files.replace(which, "the last one")
    for _ in range(2):
        files.watched.look()
    assert files.watched.value == ["the last one"] * 2
