"""Which gRPC status of a stream becomes which error: pure, and the one place that knows.

Rejected ends a participant for good, so that is only what the coordinator itself says on a stream. What fails
before there is one, TLS above all, is a ConnectionLost, whichever side is at fault: certificates are renewed
and servers put right while participants wait, and else anybody on the way could send a whole fleet home for
good with a forged alert or a cut.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import grpc

from participant_sdk.errors import (
    ConnectionClosed,
    ConnectionLost,
    ParticipantError,
    ProtocolError,
    Rejected,
)

_REJECTIONS: Final[Mapping[grpc.StatusCode, str]] = {
    grpc.StatusCode.ALREADY_EXISTS: "give each participant an id of its own",
    grpc.StatusCode.UNAUTHENTICATED: "get a valid token from the coordinator's operator (token=, or "
    "--token-file)",
    grpc.StatusCode.PERMISSION_DENIED: "use the id that this participant's credentials are for, or ask the "
    "coordinator's operator to admit it",
    grpc.StatusCode.INVALID_ARGUMENT: "correct this participant's id and attributes",
    grpc.StatusCode.UNIMPLEMENTED: "check the address: no participant manager answers there",
}


def error_of(
    code: grpc.StatusCode, details: str, address: str, *, diagnosis: str | None = None, renewed: bool = False
) -> ParticipantError:
    """The error that says how a stream to ``address`` ended.

    ``diagnosis`` says why there was no connection, where that is known better than from gRPC; ``renewed``,
    that this participant has another token by now than the one it showed.
    """
    if code is grpc.StatusCode.OK:
        return ConnectionClosed(f"the coordinator at {address} closed the stream", "connect again to go on")
    if code is grpc.StatusCode.UNAUTHENTICATED and renewed:
        return ConnectionLost(
            f"the coordinator at {address} refused a token that has been replaced since ({details})",
            "connect again with the new one",
            address=address,
            code=code,
            text=details,
        )
    if code in _REJECTIONS:
        return Rejected(
            f"the coordinator at {address} refused this participant ({code.name}: {details})",
            _REJECTIONS[code],
            address=address,
            code=code,
            text=details,
        )
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return ProtocolError(
            f"the coordinator at {address} ended the stream: {details}",
            "answer each message that consume() returns with exactly one dispatch()",
        )
    if diagnosis is not None:
        what = f"can't reach the coordinator at {address}: {diagnosis}"
    else:
        verb = "can't reach" if _UNREACHED.search(details) else "lost"
        what = f"{verb} the coordinator at {address} ({_reason(code, details)})"
    return ConnectionLost(
        what,
        "connect again after a while",
        address=address,
        code=code,
        text=details,
    )


def needs_diagnosis(code: grpc.StatusCode, details: str) -> bool:
    """Whether there was no connection for a reason that may have to do with TLS, or the lack of it."""
    return (
        code is grpc.StatusCode.UNAVAILABLE
        and _UNREACHED.search(details) is not None
        and _NOBODY.search(details) is None
    )


def nobody_is_there(error: ParticipantError) -> bool:
    """Whether there was no connection for want of a server, which may be about to start."""
    return (
        isinstance(error, ConnectionLost)
        and error.code is grpc.StatusCode.UNAVAILABLE
        and _UNREACHED.search(error.text) is not None
        and _NOBODY.search(error.text) is not None
    )


_UNREACHED: Final = re.compile("failed to connect|errors? resolving|address lookup failed", re.IGNORECASE)
_NOBODY: Final = re.compile(
    "refused|errors? resolving|lookup failed|unreachable|no route|timed? ?out|no such file", re.IGNORECASE
)


def _reason(code: grpc.StatusCode, details: str) -> str:
    """gRPC's chain of reasons, down to the last one: "connection refused"."""
    if not details:
        return code.name
    last = re.split(r":\s", details)[-1]
    last = re.sub(r"\s*\(\d+\)$|[\]}]+$", "", last).strip(" .")
    if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN):
        return f"{code.name}: {last or details}"
    return last[:1].lower() + last[1:] if last else details
