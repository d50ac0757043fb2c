"""A place for a Unix socket: private from the start, and never taken from one that lives."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.unix_socket import MAX_PATH, SocketPlace
from manager.errors import StartError


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    """Nothing but the code itself keeps others out."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


class Server:
    """Whoever listens at a path."""

    def __init__(self, path: str | Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(os.fspath(path).removeprefix("unix:"))
        self.socket.listen()

    def answers(self, path: Path) -> bool:
        """Whether it is this one that is reached there."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(path))
            self.socket.setblocking(False)
            connection, _ = self.socket.accept()
            connection.close()
            return True


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def names(path: Path) -> set[str]:
    return {each.name for each in path.parent.iterdir()}


def test_until_it_is_private_nobody_else_can_reach_it(path: Path) -> None:
    place = SocketPlace(path)
    bound = Path(place.target.removeprefix("unix:"))
    server = Server(bound)
    assert mode(bound) != 0o600, "by itself it isn't"
    assert mode(bound.parent) == 0o700
    assert not path.exists()
    place.settle()
    assert (mode(path), path.is_socket()) == (0o600, True)
    assert server.answers(path)
    place.close()
    server.socket.close()
    assert names(path) == set(), "nothing is left"


def test_what_a_server_that_was_killed_has_left_is_replaced(path: Path) -> None:
    Server(path).socket.close()
    (path.parent / "control.sock.lock").touch()
    assert path.is_socket()
    place = SocketPlace(path)
    server = Server(place.target)
    place.settle()
    assert server.answers(path)
    assert mode(path) == 0o600
    server.socket.close()
    place.close()


def test_one_that_lives_is_let_be(path: Path) -> None:
    server = Server(path)
    with pytest.raises(StartError, match=f"another process listens at unix:{path}; stop it"):
        SocketPlace(path)
    assert server.answers(path)
    assert names(path) == {"control.sock"}
    server.socket.close()


def test_one_that_is_too_busy_to_answer_lives(path: Path) -> None:
    server = Server(path)
    server.socket.listen(0)
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for each in waiting:
        each.setblocking(False)
        each.connect_ex(os.fspath(path))
    with pytest.raises(StartError, match="another process listens"):
        SocketPlace(path)
    for each in (*waiting, server.socket):
        each.close()


def test_of_two_that_start_at_once_one_is_refused(path: Path) -> None:
    first = SocketPlace(path)
    with pytest.raises(StartError, match="another coordinator listens"):
        SocketPlace(path)
    server = Server(first.target)
    first.settle()
    with pytest.raises(StartError, match="another coordinator listens"):
        SocketPlace(path)
    assert server.answers(path)
    first.close()
    server.socket.close()
    SocketPlace(path).close()


def test_a_socket_that_has_taken_its_place_is_not_taken_away(path: Path) -> None:
    place = SocketPlace(path)
    mine = Server(place.target)
    place.settle()
    path.unlink()
    other = Server(path)
    place.close()
    assert other.answers(path)
    for server in (mine, other):
        server.socket.close()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_let_be(path: Path, tmp_path: Path, kind: str) -> None:
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    before = names(path)
    with pytest.raises(StartError, match="there is something else than a socket"):
        SocketPlace(path)
    assert names(path) == before


def test_where_everybody_may_replace_it_there_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(StartError, match="everybody may replace what is in it"):
        SocketPlace(tmp_path / "open" / "control.sock")
    (tmp_path / "open").chmod(0o1777)
    SocketPlace(tmp_path / "open" / "control.sock").close()


def test_where_there_can_be_no_socket_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=f"there is no directory {tmp_path / 'nowhere'}; make it"):
        SocketPlace(tmp_path / "nowhere" / "control.sock")
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="Not a directory"):
        SocketPlace(tmp_path / "file" / "control.sock")
    long = tmp_path / ("a" * (MAX_PATH + 1 - len(os.fspath(tmp_path)) - 1))
    with pytest.raises(StartError, match="too long for a socket"):
        SocketPlace(long)
    assert names(long) == {"file"}
