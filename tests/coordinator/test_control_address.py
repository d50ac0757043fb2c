"""Where a coordinator is asked, as people write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.control_address import UnixAddress, is_local, parse
from manager.listen import Address


def test_a_host_and_a_port_are_what_they_are_elsewhere() -> None:
    assert parse("127.0.0.1:50050") == Address("127.0.0.1", 50050)
    for text in ("nowhere", "127.0.0.1", "http://127.0.0.1:1", "/run/muster.sock", "UNIX:/run/muster.sock"):
        with pytest.raises(ValueError, match="; or unix:PATH for a socket"):
            parse(text)


def test_a_socket_is_named_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse("unix:/run/muster.sock") == parse("unix:///run/muster.sock")
    assert str(parse("unix:/run/muster.sock")) == "unix:/run/muster.sock"
    monkeypatch.chdir(tmp_path)
    relative = parse("unix:run/a b.sock")
    monkeypatch.chdir("/")
    assert relative == UnixAddress(tmp_path / "run" / "a b.sock")


@pytest.mark.parametrize("text", ["unix:", "unix:/run/", "unix://run/x", "unix:a\0b"])
def test_what_can_be_no_path_is_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="write the path of a socket"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("unix:/run/x", True),
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example.org:1", False),
    ],
)
def test_what_stays_on_this_machine(text: str, local: bool) -> None:
    assert is_local(parse(text)) == local
