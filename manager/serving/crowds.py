"""Decides how many streams one address may have at one worker. Sans-IO.

An address is an IPv4 address, or the first 64 bits of an IPv6 address: who has one of these has them all.
Loopback and Unix sockets don't count: what comes from there is this machine's own, or has come through a
proxy of it.

Above the limit participants are told when to come back, like all others that there is no room for. They have
to be waited for until they have gone, so they count as well; above twice the limit streams just end. How many
connections there may be without a stream, connections.py decides.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum, auto
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple, TypeVar
from urllib.parse import unquote

K = TypeVar("K")


class Entry(Enum):
    IN = auto()
    LATER = auto()  # told to come back
    NEVER = auto()  # cut off


class Place(NamedTuple):
    """Where somebody is: the other end of a connection. Of strings, because thousands are looked up."""

    address: str  # in the one form that it has
    port: int
    origin: str | None  # the address to count for; None if it doesn't count


class Crowds:
    """The streams of one worker, counted by where they come from. Each enters once, and leaves once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._streams: Counter[str] = Counter()
        self._places: Counter[Place] = Counter()

    def enter(self, peer: str) -> Entry:
        """A stream begins. ``peer`` is gRPC's name for the other end."""
        place, origin = _known(peer)
        if place is not None:
            self._places[place] += 1
        if origin is None:
            return Entry.IN
        self._streams[origin] += 1
        number = self._streams[origin]
        if number <= self._most:
            return Entry.IN
        return Entry.LATER if number <= 2 * self._most else Entry.NEVER

    def leave(self, peer: str) -> None:
        """A stream that had entered has ended, whatever it was told."""
        place, origin = _known(peer)
        if place is not None:
            _less(self._places, place)
        if origin is not None:
            _less(self._streams, origin)

    def at(self, place: Place) -> bool:
        """Whether there is a stream from there."""
        return place in self._places

    def __len__(self) -> int:
        """How many addresses there are streams from."""
        return len(self._streams)


def place_of(host: str, port: int) -> Place | None:
    """None if ``host`` is no address. IPv4 is IPv4 in whatever form it comes."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    origin: str | None = str(address)
    if address.is_loopback:
        origin = None
    elif isinstance(address, IPv6Address):
        origin = f"{IPv6Address(int(address) >> 64 << 64)}/64"
    return Place(str(address), port, origin)


def _known(peer: str) -> tuple[Place | None, str | None]:
    """Where a peer is, and what it counts for. One of an unknown form counts for itself."""
    scheme, _, rest = peer.partition(":")
    if scheme.startswith("unix"):
        return None, None
    if scheme in ("ipv4", "ipv6"):
        host, _, port = unquote(rest).rpartition(":")
        if port.isascii() and port.isdecimal() and (place := place_of(host.strip("[]"), int(port))):
            return place, place.origin
    return None, peer


def _less(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
