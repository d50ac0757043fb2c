"""How scripts and commands reach a coordinator: what is refused before anything is sent."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.control.access import Access
from coordinator.control_address import parse
from coordinator.errors import CredentialsError
from protos.tls import TLS
from tests.authority import Authority

SECRET = "muster_abcdefg"  # noqa: S105


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/nowhere"])
def test_a_token_goes_to_this_machine_in_plaintext(address: str) -> None:
    access = Access.of(address, None, SECRET)
    assert access.metadata() == (("authorization", f"Bearer {SECRET}"),)


@pytest.mark.parametrize("address", ["10.0.0.1:1", "example.org:1", "0.0.0.0:1"])
def test_a_token_goes_nowhere_else_in_plaintext(address: str) -> None:
    with pytest.raises(CredentialsError, match=f"the token won't go to {address} in plaintext") as caught:
        Access.of(address, None, SECRET).metadata()
    assert SECRET not in str(caught.value)
    assert Access.of(address, True, SECRET).metadata()
    assert Access.of(address, None, None).metadata() == ()


def test_a_token_may_be_in_a_file_which_is_read_each_time(tmp_path: Path) -> None:
    access = Access.of("127.0.0.1:1", None, tmp_path / "token")
    with pytest.raises(CredentialsError, match="can't read the token in"):
        access.metadata()
    for token in (SECRET, "muster_other"):
        (tmp_path / "token").write_text(f"{token}\n")
        assert access.metadata() == (("authorization", f"Bearer {token}"),)


@pytest.mark.parametrize(
    ("details", "said"),
    [
        ("errors resolving a.b:1: [field:hostname lookup error:address lookup failed for a.b:1: no]", True),
        ("DNS resolution failed for a.b:1: C-ares status is not ARES_SUCCESS", True),
        ("failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:1: refused", False),
    ],
)
def test_a_name_is_unknown_where_grpc_says_so(details: str, said: bool) -> None:
    unknown = Access.of("a.b:1", None, None).unknown_name(details)
    assert unknown == ("the name a.b isn't known here" if said else None)
    assert Access.of("unix:/a", None, None).unknown_name(details) is None


def test_no_token_is_shown() -> None:
    assert SECRET not in repr(Access.of("127.0.0.1:1", None, SECRET))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tls": "ca.pem"}, r'tls= takes a TLS, as in TLS\(ca="ca.pem"\), or a bool, not str'),
        ({"token": b"abc"}, "token= takes a str, or the Path of a file, not bytes"),
    ],
)
def test_what_is_given_as_something_else_is_a_sentence(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        Access.of("127.0.0.1:1", **{"tls": None, "token": None, **arguments})
    with pytest.raises(ValueError, match="write host:port"):
        Access.of("nowhere", None, None)


def test_files_for_tls_that_can_not_be_used_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="can't read the CA certificates"):
        Access(parse("10.0.0.1:1"), TLS(tmp_path / "nowhere.pem")).blocking_channel()
    with Access(parse("10.0.0.1:1"), TLS(Authority(tmp_path).file)).blocking_channel():
        pass


def test_a_unix_socket_speaks_no_tls() -> None:
    with pytest.raises(CredentialsError, match="speaks no TLS; leave out"):
        Access.of("unix:/nowhere", True, None).blocking_channel()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(tmp_path / "s"))
        yield f"unix:{tmp_path / 's'}"


def test_to_a_socket_of_somebody_else_nothing_is_sent(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access.of(served, None, None)
    me = os.getuid()
    with access.blocking_channel():
        pass
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    if me != 0:  # that of root anybody may use
        with pytest.raises(CredentialsError, match=f"belongs to somebody else \\(user id {me}\\)"):
            access.blocking_channel()
    monkeypatch.setattr("coordinator.control.access._ROOT", -1)
    with pytest.raises(CredentialsError, match=f"belongs to somebody else \\(user id {me}\\)"):
        access.blocking_channel()
