"""Each end of a stream is one error, and its text says what happened, to whom, and what to do."""

from __future__ import annotations

import copy

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from participant_sdk import (
    AddressError,
    ConnectionClosed,
    ConnectionLost,
    CredentialsError,
    ParticipantError,
    ProtocolError,
    Reconnect,
    Rejected,
)
from participant_sdk.status import error_of, needs_diagnosis

Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.OK, ConnectionClosed),
        (Code.ALREADY_EXISTS, Rejected),
        (Code.UNAUTHENTICATED, Rejected),
        (Code.PERMISSION_DENIED, Rejected),
        (Code.INVALID_ARGUMENT, Rejected),
        (Code.UNIMPLEMENTED, Rejected),
        (Code.FAILED_PRECONDITION, ProtocolError),
        (Code.UNAVAILABLE, ConnectionLost),
        (Code.CANCELLED, ConnectionLost),
        (Code.RESOURCE_EXHAUSTED, ConnectionLost),
        (Code.INTERNAL, ConnectionLost),
        (Code.UNKNOWN, ConnectionLost),
        (Code.DEADLINE_EXCEEDED, ConnectionLost),
    ],
)
def test_each_status_is_one_error(code: grpc.StatusCode, kind: type[ParticipantError]) -> None:
    error = error_of(code, "the server's words", "host:1")
    assert type(error) is kind
    assert "host:1" in str(error)
    assert error.advice
    if code is not Code.OK:
        assert "the server's words" in str(error)
    if isinstance(error, ConnectionLost | Rejected):
        assert (error.code, error.text, error.address) == (code, "the server's words", "host:1")


@pytest.mark.parametrize(
    ("code", "details", "what"),
    [
        (
            Code.UNAVAILABLE,
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to "
            "remote host: connect: Connection refused (111)",
            "can't reach the coordinator at host:1 (connection refused)",
        ),
        (
            Code.UNAVAILABLE,
            "errors resolving nosuch.invalid:1: [field:hostname lookup error:address lookup failed for "
            "nosuch.invalid:1: Domain name not found]",
            "can't reach the coordinator at host:1 (domain name not found)",
        ),
        (Code.UNAVAILABLE, "Socket closed", "lost the coordinator at host:1 (socket closed)"),
        (Code.CANCELLED, "", "lost the coordinator at host:1 (CANCELLED)"),
        (Code.RESOURCE_EXHAUSTED, "full: wait.", "lost the coordinator at host:1 (RESOURCE_EXHAUSTED: wait)"),
    ],
)
def test_the_reason_is_the_last_of_grpcs_chain(code: grpc.StatusCode, details: str, what: str) -> None:
    assert error_of(code, details, "host:1").what == what


def test_what_is_known_of_a_failed_connection_takes_the_place_of_grpcs_words() -> None:
    details = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:1: Socket closed"
    error = error_of(Code.UNAVAILABLE, details, "host:1", diagnosis="the server has two left feet; mend it")
    assert type(error) is ConnectionLost
    assert error.what == "can't reach the coordinator at host:1: the server has two left feet; mend it"
    assert (error.code, error.text) == (Code.UNAVAILABLE, details)


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("UNAVAILABLE: ipv4:127.0.0.1:1: Socket closed", True),
        ("UNKNOWN: ipv4:127.0.0.1:1: Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: …", True),
        ("UNKNOWN: ipv4:127.0.0.1:1: recvmsg:Connection reset by peer (104)", True),
        (
            "UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote host: connect: Connection refused (111)",
            False,
        ),
        ("UNKNOWN: ipv4:10.0.0.1:1: Failed to connect to remote host: No route to host (113)", False),
        ("UNKNOWN: ipv4:10.0.0.1:1: Failed to connect to remote host: Network is unreachable (101)", False),
        ("UNKNOWN: ipv4:10.0.0.1:1: Failed to connect to remote host: connect: Timeout occurred", False),
        ("UNKNOWN: ipv4:10.0.0.1:1: Failed to connect to remote host: Connection timed out (110)", False),
        ("UNKNOWN: unix:/x: Failed to connect to remote host: connect: No such file or directory (2)", False),
    ],
)
def test_what_may_have_to_do_with_tls(last: str, expected: bool) -> None:
    details = f"failed to connect to all addresses; last error: {last}"
    assert needs_diagnosis(Code.UNAVAILABLE, details) is expected
    assert not needs_diagnosis(Code.UNAVAILABLE, last.partition(": ipv4")[0])
    assert not needs_diagnosis(Code.UNAUTHENTICATED, details)


@pytest.mark.parametrize("code", list(Code), ids=str)
def test_only_a_refused_token_is_worth_another_try_with_a_new_one(code: grpc.StatusCode) -> None:
    plain = error_of(code, "text", "host:1")
    renewed = error_of(code, "text", "host:1", renewed=True)
    if code is Code.UNAUTHENTICATED:
        assert type(renewed) is ConnectionLost
        assert renewed.what == (
            "the coordinator at host:1 refused a token that has been replaced since (text)"
        )
    else:
        assert (type(renewed), str(renewed)) == (type(plain), str(plain))


@given(st.sampled_from(list(Code)), st.text())
def test_every_status_has_an_error(code: grpc.StatusCode, details: str) -> None:
    assert str(error_of(code, details, "host:1"))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionClosed("what", "advice"),
        ConnectionLost("what", "advice", address="host:1", code=Code.UNAVAILABLE, text="text"),
        Rejected("what", code=Code.ALREADY_EXISTS),
        ProtocolError("what"),
        Reconnect(1.5, "host:1"),
        CredentialsError("what", "advice"),
        AddressError("what", "advice"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_can_be_copied_between_processes(error: ParticipantError) -> None:
    twin = copy.copy(error)
    assert (type(twin), str(twin), vars(twin)) == (type(error), str(error), vars(error))
