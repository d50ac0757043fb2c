"""The public address: how it is read, reserved, and shared by several workers.

On Linux all workers listen on one host:port with SO_REUSEPORT, and the kernel spreads the connections. That
has a trap: a second cluster on the same port would silently share it too. So whoever starts the workers
first makes sure that nobody is there, and then holds the port with a socket of its own that is bound, but
does not listen. Elsewhere (macOS, Windows) workers take consecutive ports.
"""

from __future__ import annotations

import errno
import socket
import sys
from dataclasses import dataclass
from ipaddress import ip_address

from manager.errors import AddressInUse, StartError

CAN_SHARE_PORT = sys.platform == "linux" and hasattr(socket, "SO_REUSEPORT")


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a TCP port, to listen on (port 0: any free one) or to connect to."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it.

        Names other than localhost may mean anything, and so may a ``%``, which gRPC decodes as in a URI.
        """
        try:
            return "%" not in self.host and ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    @classmethod
    def parse(cls, text: str, example: str = "127.0.0.1:50051") -> Address:
        """Reads ``host:port`` or ``[ipv6]:port``. Raises ValueError with a sentence for the person, and an
        example."""
        if not isinstance(text, str):
            raise TypeError(f"an address is text like {example}, not {text!r}")
        if "://" in text:
            raise ValueError(f"{text!r}: write host:port alone, as in {example}")
        host, colon, port = text.strip().rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"{text!r}: write an IPv6 address in brackets, as in [::1]:50051")
        if not colon or not host:
            raise ValueError(f"{text!r} is not an address; write host:port, as in {example}")
        if not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
            raise ValueError(f"{text!r}: the port must be a number from 0 to 65535")
        return cls(host, int(port))


def addresses_of(address: Address) -> set[str] | None:
    """The addresses that a server there listens at, in their one form; None if it is all of them."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return None
    hosts = [ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found]
    return None if any(host.is_unspecified for host in hosts) else {str(host) for host in hosts}


class Reservation:
    """Holds an address for workers that will share it. Close it when they have stopped."""

    def __init__(self, address: Address, holder: socket.socket) -> None:
        self.address = address
        self._holder = holder

    def close(self) -> None:
        self._holder.close()


def reserve(address: Address) -> Reservation:
    """Makes sure that nobody has the address, and holds it; resolves port 0.

    Raises:
        AddressInUse: another process has it, even one that shares it with SO_REUSEPORT.
        StartError: the host can't be resolved or isn't one of this machine's.
    """
    return hold(probe(address))


def hold(address: Address) -> Reservation:
    """Holds an address that nobody has, or only workers of this coordinator. Raises like ``reserve``."""
    family, sockaddr = _resolve(address)
    holder = socket.socket(family, socket.SOCK_STREAM)
    try:
        if CAN_SHARE_PORT:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _bind(holder, sockaddr, address)
    except BaseException:
        holder.close()
        raise
    return Reservation(address, holder)


def probe(address: Address) -> Address:
    """Makes sure that nobody has the address, but doesn't hold it; resolves port 0. Raises like reserve."""
    family, sockaddr = _resolve(address)
    with socket.socket(family, socket.SOCK_STREAM) as probing:
        # Without SO_REUSEPORT this bind fails if anybody is there; SO_REUSEADDR only forgives TIME_WAIT.
        probing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(probing, sockaddr, address)
        return Address(address.host, probing.getsockname()[1])


def _resolve(address: Address) -> tuple[socket.AddressFamily, tuple[str, int, *tuple[int, ...]]]:
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise StartError(f"can't listen on {address}: {error.strerror or error}") from None
    except ValueError:  # UnicodeError, for a name that no encoding of DNS has room for
        raise StartError(f"can't listen on {address}: {address.host!r} can't be the name of a host") from None
    family, _, _, _, sockaddr = found[0]
    return family, sockaddr  # type: ignore[return-value]


def _bind(sock: socket.socket, sockaddr: tuple[str, int, *tuple[int, ...]], address: Address) -> None:
    try:
        sock.bind(sockaddr)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(str(address)) from None
        raise StartError(f"can't listen on {address}: {error.strerror or error}") from None
