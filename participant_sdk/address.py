"""Decides what an address of a coordinator looks like, before gRPC makes a riddle of a bad one, and where it
leads."""

from __future__ import annotations

import re
from typing import Final

from participant_sdk.errors import AddressError
from protos.tls import is_loopback

_URI: Final = re.compile(r"(unix|unix-abstract|dns|ipv4|ipv6|vsock):\S+")
_SCHEME: Final = re.compile(r"(dns|ipv4|ipv6):(///)?")
_HOST_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]+):(\d{1,5})")


def check_address(address: str) -> str:
    """``address`` itself, if it is ``host:port``, ``[ipv6]:port`` or a gRPC name such as ``unix:/path``.

    Raises AddressError, which says what is wrong with it.
    """
    if not isinstance(address, str):
        raise AddressError(f"an address is text, not {type(address).__name__}", "write host:port")
    match = _HOST_PORT.fullmatch(address)
    if match and 0 < int(match[2]) < 65536:
        return address
    if match:
        raise AddressError(f"{address!r}: port {match[2]} isn't between 1 and 65535", "write host:port")
    if _URI.fullmatch(address):
        return address
    if "://" in address:
        raise AddressError(f"{address!r} is a URL, not an address", "write host:port, without a scheme")
    if address.count(":") > 1 and "[" not in address:
        raise AddressError(f"{address!r} is no address", "write an IPv6 address as [::1]:port")
    raise AddressError(f"{address!r} is no address", "write host:port, such as 127.0.0.1:50051")


def host_and_port(address: str) -> tuple[str, int] | None:
    """The one host and port that a good address leads to; None for a list of them, or something else."""
    match = _HOST_PORT.fullmatch(address) or _HOST_PORT.fullmatch(_SCHEME.sub("", address))
    return (match[1].strip("[]"), int(match[2])) if match else None


def is_local(address: str) -> bool:
    """Whether what is sent to a good address stays on this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    where = host_and_port(address)
    return where is not None and is_loopback(where[0])
