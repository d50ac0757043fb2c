"""What a worker takes on at most: participants, joins, bytes, open files; and after what silence it acts.

Decides defaults, which values make sense, and how many participants fit into the files that a process may
open. Who is turned away, and when, admission.py decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from manager.typed import check_types

LEAST_MESSAGE: Final = 4 * 1024**2
"""What each side of a stream has to accept in any case (PROTOCOL.md A.0) …"""

MOST_MESSAGE: Final = 2**31 - 1
"""… and the limit of protobuf. Those of protos/chunks.py, which loads NumPy: --help needn't wait for it."""

LEAST_METADATA: Final = 1024
MOST_METADATA: Final = 1024**2
"""Between these ``max_metadata`` makes sense: below, a token and what gRPC itself says don't fit."""

OWN_FILES: Final = 128
"""Open files that a worker needs for itself: the link, gRPC's and asyncio's polls, pipes. (It has
about 30.)"""

SPARE_FILES: Final = 2048
"""Open files that are not given to participants: half for large answers (each is a file while it is kept;
384 fit into the memory for them, and MOST_FILES of spool.py onto the disk), half for connections that have
just been accepted, or turned away and not gone yet. A quarter of all, if that is less."""

FEW_FILES: Final = 4096
"""A process that may not open so many has room for fewer participants than a worker can serve with ease."""

MORE_FILES: Final = (
    "allow more with `ulimit -n 65536` in the shell that starts it, LimitNOFILE=65536 in a systemd unit, or "
    "--ulimit nofile=65536 for a container"
)
"""What a person can do about too few open files."""


MOVES_PER_SECOND: Final = 1000
"""Participants of workers that drain which come to others per second at most."""


def moves_per_second(max_joins: float) -> float:
    """How many of them come per second, where no more may join."""
    return min(MOVES_PER_SECOND, max_joins)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """For each worker. Times are in seconds, sizes in bytes.

    Raises ValueError for what makes no sense, and TypeError for what isn't of a field's type.
    """

    max_per_worker: int | None = None  # participants; None: as many as it may open files for
    max_per_address: int = 1_000  # streams from one address; loopback is exempt (crowds.py)
    max_joins: float = 1_000.0  # participants that may join per second
    come_back: tuple[float, float] = (10.0, 60.0)  # when those may try again that find it full
    max_message: int = MOST_MESSAGE  # a whole message of a participant
    upload_memory: int = 96 * 1024**2  # for large answers, until they are folded in or passed on
    upload_disk: int = 16 * 1024**3  # for those of them that come slowly, or are larger than that
    keepalive: float = 10.0  # without data before a ping, and half as long again for its answer
    handshake_timeout: float = 20.0  # from the connection until TLS and HTTP/2 have begun
    hello_timeout: float = 120.0  # from the stream until its first message
    idle_timeout: float = 60.0  # for which there may be a connection without a stream
    max_metadata: int = 8 * 1024  # all of a stream's headers

    def __post_init__(self) -> None:
        check_types(self)
        if self.max_per_worker is not None and self.max_per_worker < 1:
            raise ValueError(f"max_per_worker must be at least 1, not {self.max_per_worker}")
        if self.max_per_address < 1:
            raise ValueError(f"max_per_address must be at least 1, not {self.max_per_address}")
        if not 0.1 <= self.max_joins < math.inf:  # nor nan
            raise ValueError(f"max_joins must be at least 0.1 a second, not {self.max_joins}")
        low, high = self.come_back
        if not 0 < low <= high < math.inf:
            raise ValueError(f"come_back must be two times above 0 in order, not {low:g}-{high:g}")
        if not LEAST_MESSAGE <= self.max_message <= MOST_MESSAGE:
            raise ValueError(
                f"max_message must be from {LEAST_MESSAGE} bytes, which each side of a stream has to accept, "
                f"to {MOST_MESSAGE}, the limit of protobuf; not {self.max_message}"
            )
        for name in ("upload_memory", "upload_disk"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be bytes of at least 0, not {getattr(self, name)}")
        for name in ("keepalive", "handshake_timeout", "hello_timeout", "idle_timeout"):
            if not 0.1 <= getattr(self, name) <= 3600:
                raise ValueError(f"{name} must be from 0.1 to 3600 seconds, not {getattr(self, name)}")
        if not LEAST_METADATA <= self.max_metadata <= MOST_METADATA:
            raise ValueError(
                f"max_metadata must be bytes from {LEAST_METADATA} to {MOST_METADATA}: {self.max_metadata}"
            )

    def arguments(self) -> list[str]:
        """The same as options of ``manager start``."""
        low, high = self.come_back
        return [
            *([] if self.max_per_worker is None else [f"--max-per-worker={self.max_per_worker}"]),
            f"--max-per-address={self.max_per_address}",
            f"--max-joins={self.max_joins!r}",
            f"--come-back={low!r}-{high!r}",
            f"--max-message={self.max_message}",
            f"--upload-memory={self.upload_memory}",
            f"--upload-disk={self.upload_disk}",
            f"--keepalive={self.keepalive!r}",
            f"--handshake-timeout={self.handshake_timeout!r}",
            f"--hello-timeout={self.hello_timeout!r}",
            f"--idle-timeout={self.idle_timeout!r}",
            f"--max-metadata={self.max_metadata}",
        ]


def metadata_size(metadata: Iterable[tuple[str, str | bytes]] | None) -> int:
    """What a call's headers count for: names, values, and 32 bytes each (RFC 9113, section 6.5.2)."""
    return sum(len(name) + len(value) + 32 for name, value in metadata or ())


@dataclass(frozen=True, slots=True)
class Room:
    """What fits into the files that a worker may open."""

    participants: int
    streams: int  # those of participants, and of those who have not been admitted
    connections: int  # all that the server keeps: it must never take the files that the process itself needs


def room(limits: Limits, files: int) -> Room:
    """How many a worker has room for that may open so many files. A participant takes one: its connection.

    Raises ValueError, with what to do, if ``max_per_worker`` doesn't fit. To run out of files would be
    worse: a server that can't accept a connection can't tell anybody to come back later, either.
    """
    rest = files - OWN_FILES
    spare = min(rest // 4, SPARE_FILES)
    most = rest - spare
    if most < 1:
        raise ValueError(f"a worker may open {files} files here, which is too few for any; {MORE_FILES}")
    wanted = most if limits.max_per_worker is None else limits.max_per_worker
    if wanted > most:
        raise ValueError(
            f"{wanted} participants per worker are too many for the {files} files a process may open here: "
            f"there is room for {most}; ask for fewer, start more workers, or {MORE_FILES}"
        )
    streams = rest - spare // 2
    return Room(wanted, streams, streams + OWN_FILES // 2)
