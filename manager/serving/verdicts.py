"""How this side ends a stream: the reason for the coordinator, and what the participant is told.

A breach of the protocol says for itself what was wrong: session.py, servicer.py.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import grpc

from manager.serving.refused import Cause
from protos import link_pb2

EndReason = link_pb2.EndReason


class Verdict(NamedTuple):
    reason: EndReason.ValueType
    code: grpc.StatusCode  # that the participant sees …
    text: str  # … with this
    cause: Cause | None = None  # that it is counted for; None: nobody has done anything wrong


CHUNK_TIMEOUT: Final = 60.0
"""Seconds between two chunks of a message."""

LEAVE_TIMEOUT: Final = 5.0
"""Seconds in which a participant that was told to reconnect, or has taken its leave, has to end its
stream."""

STALLED = Verdict(
    EndReason.VIOLATION,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    f"a message in chunks has begun, but nothing more of it came for {CHUNK_TIMEOUT:g} s; connect again",
    Cause.STALLED,
)
STAYED = Verdict(
    EndReason.VIOLATION,
    grpc.StatusCode.UNAVAILABLE,
    f"was told to reconnect, and has not ended its stream in {LEAVE_TIMEOUT:g} s; connect again",
    Cause.STAYED,
)
LINGERED = Verdict(
    EndReason.VIOLATION,
    grpc.StatusCode.UNAVAILABLE,
    f"took its leave, and has not ended its stream in {LEAVE_TIMEOUT:g} s",
    Cause.STAYED,
)
SILENT = Verdict(
    EndReason.LOST,
    grpc.StatusCode.UNAVAILABLE,
    "said nothing, and had to make room for others; connect again after a while",
    Cause.SILENT,
)


def speechless(seconds: float) -> Verdict:
    """There was no first message."""
    return Verdict(
        EndReason.VIOLATION,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        f"no first message came in {seconds:g} s; connect again, and say hello",
        Cause.HELLO_TIMEOUT,
    )


REPLACED = Verdict(
    EndReason.REPLACED,
    grpc.StatusCode.ALREADY_EXISTS,
    "a newer connection with the same participant id has taken the place of this one",
)

REVOKED = Verdict(
    EndReason.LOST,
    grpc.StatusCode.UNAUTHENTICATED,
    "the token of this participant has been revoked",
    Cause.CREDENTIALS,
)

OUT_OF_STEP = Verdict(
    EndReason.LOST,
    grpc.StatusCode.ABORTED,
    "the manager and the coordinator disagree on what this participant works on; connect again",
)
