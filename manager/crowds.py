"""Decides how many streams one address may have at one worker. Sans-IO.

An address is an IPv4 address, or the first 64 bits of an IPv6 address: who has one of these has them all.
Loopback and Unix sockets don't count: what comes from there is this machine's own, or has come through a
proxy of it.

Above the limit participants are told when to come back, like all others that there is no room for. They have
to be waited for until they have gone, so they count as well; above twice the limit streams just end.
"""

from __future__ import annotations

from enum import Enum, auto
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import unquote


class Entry(Enum):
    IN = auto()
    LATER = auto()  # told to come back
    NEVER = auto()  # cut off


class Crowds:
    """The streams of one worker, counted by where they come from. Each enters once, and leaves once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._streams: dict[str, int] = {}

    def enter(self, peer: str) -> Entry:
        """A stream begins. ``peer`` is gRPC's name for the other end."""
        if (origin := origin_of(peer)) is None:
            return Entry.IN
        number = self._streams[origin] = self._streams.get(origin, 0) + 1
        if number <= self._most:
            return Entry.IN
        return Entry.LATER if number <= 2 * self._most else Entry.NEVER

    def leave(self, peer: str) -> None:
        """A stream that had entered has ended, whatever it was told."""
        if (origin := origin_of(peer)) is not None:
            self._streams[origin] -= 1
            if not self._streams[origin]:
                del self._streams[origin]

    def __len__(self) -> int:
        """How many addresses there are streams from."""
        return len(self._streams)


def origin_of(peer: str) -> str | None:
    """The address to count for; None if the peer doesn't count. An unknown form counts for itself."""
    scheme, _, rest = peer.partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return None if scheme.startswith("unix") else peer
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address: IPv4Address | IPv6Address = ip_address(host)
    except ValueError:
        return peer
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        if mapped is None:
            return None if address.is_loopback else f"{IPv6Address(int(address) >> 64 << 64)}/64"
        address = mapped
    return None if address.is_loopback else str(address)
