"""Where a coordinator is asked: ``host:port``, or ``unix:PATH``, a socket of this user's alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from manager.listen import Address

_SCHEME = "unix:"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket; the path is absolute."""

    path: Path

    def __str__(self) -> str:
        return f"{_SCHEME}{self.path}"


ControlAddress: TypeAlias = Address | UnixAddress


def parse(text: str) -> ControlAddress:
    """Reads ``host:port``, ``[ipv6]:port`` or ``unix:PATH``. Raises ValueError with a sentence."""
    if not isinstance(text, str) or not text.startswith(_SCHEME):
        try:
            return Address.parse(text, "127.0.0.1:50050")
        except ValueError as error:
            raise ValueError(f"{error}; or unix:PATH for a socket") from None
    path = text.removeprefix(_SCHEME)
    if path.startswith("///"):  # as in a URL
        path = path[2:]
    if not path or path.endswith("/") or "\0" in path or path.startswith("//"):
        raise ValueError(f"{text!r}: write the path of a socket, as in unix:/run/muster/control.sock")
    return UnixAddress(Path(path).absolute())


def target(address: ControlAddress) -> str:
    """What gRPC calls it."""
    return unix_target(address.path) if isinstance(address, UnixAddress) else str(address)


def unix_target(path: Path) -> str:
    """What gRPC calls a socket: it decodes paths as URLs."""
    return f"{_SCHEME}{str(path).replace('%', '%25')}"


def is_local(address: ControlAddress) -> bool:
    """Whether what is sent there stays on this machine."""
    return isinstance(address, UnixAddress) or address.is_loopback
