"""Which gRPC status of a stream becomes which error: pure, and the one place that knows."""

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
    grpc.StatusCode.UNAUTHENTICATED: "check this participant's credentials",
    grpc.StatusCode.PERMISSION_DENIED: "ask the coordinator's operator to admit this participant",
    grpc.StatusCode.INVALID_ARGUMENT: "correct this participant's id and attributes",
    grpc.StatusCode.UNIMPLEMENTED: "check the address: no participant manager answers there",
}


def error_of(code: grpc.StatusCode, details: str, address: str) -> ParticipantError:
    """The error that says how a stream to ``address`` ended."""
    if code is grpc.StatusCode.OK:
        return ConnectionClosed(f"the coordinator at {address} closed the stream", "connect again to go on")
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
    verb = "can't reach" if _UNREACHED.search(details) else "lost"
    return ConnectionLost(
        f"{verb} the coordinator at {address} ({_reason(code, details)})",
        "connect again after a while",
        address=address,
        code=code,
        text=details,
    )


_UNREACHED: Final = re.compile("failed to connect|errors? resolving|address lookup failed", re.IGNORECASE)


def _reason(code: grpc.StatusCode, details: str) -> str:
    """gRPC's chain of reasons, down to the last one: "connection refused"."""
    if not details:
        return code.name
    last = re.split(r":\s", details)[-1]
    last = re.sub(r"\s*\(\d+\)$|[\]}]+$", "", last).strip(" .")
    if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN):
        return f"{code.name}: {last or details}"
    return last[:1].lower() + last[1:] if last else details
