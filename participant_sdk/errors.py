"""What can go wrong for a participant, as one tree::

    ParticipantError
    ├── ConnectionClosed     the coordinator ended the stream in good order
    ├── ConnectionLost       the stream broke, or never came about; another try may work
    ├── Reconnect            the coordinator asks to leave, wait and come back
    ├── ProtocolError        one side broke the rules of the stream: a bug, there or here
    ├── Rejected             the coordinator won't have this participant; trying again is useless
    ├── CredentialsError     (also a ValueError) certificates or a token of one's own that can't be used
    └── AddressError         (also a ValueError) an address that can't be one

Beside it stand protos.tensors.TensorError and protos.messages.ScalarError, for values that can't be sent.

Decides the words and what each error carries; status.py decides which gRPC status becomes which error, and
says why a failure of TLS is never a Rejected. Only the standard library and gRPC's status codes are needed
here.
"""

from __future__ import annotations

import grpc

__all__ = [
    "AddressError",
    "ConnectionClosed",
    "ConnectionLost",
    "CredentialsError",
    "ParticipantError",
    "ProtocolError",
    "Reconnect",
    "Rejected",
]


class ParticipantError(Exception):
    """The base of all errors of this package.

    ``what`` says what happened and to whom, ``advice`` what to do about it; the error's text is both.
    """

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(what, advice)
        self.what = what
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.what}; {self.advice}" if self.advice else self.what


class _StreamError(ParticipantError):
    """One that a gRPC status tells of: its ``code`` and ``text``, and the coordinator's ``address``."""

    def __init__(
        self, what: str, advice: str = "", *, address: str = "", code: grpc.StatusCode, text: str = ""
    ) -> None:
        super().__init__(what, advice)
        self.address = address
        self.code = code
        self.text = text

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.advice, self.address, self.code, self.text)


def _rebuild(
    kind: type[_StreamError], what: str, advice: str, address: str, code: grpc.StatusCode, text: str
) -> _StreamError:
    return kind(what, advice, address=address, code=code, text=text)


class ConnectionClosed(ParticipantError):
    """The coordinator ended the stream in good order, or this side did. Connect again to go on."""


class ConnectionLost(_StreamError):
    """The stream broke, or never came about. Connect again after a while; Participant does so by itself."""


class Rejected(_StreamError):
    """The coordinator refused this participant, and would again. ``text`` is its reason."""


class ProtocolError(ParticipantError):
    """A message out of turn, or one that can't be read. The text is the coordinator's where it found it."""


class Reconnect(ParticipantError):
    """The coordinator asks the participant to leave and come back.

    ``delay_seconds`` is how long to wait; 0 leaves it to the participant (wait a random time, so that not
    all come at once). ``address`` is where to come back to: the one used so far, or one that the
    coordinator named.
    """

    def __init__(self, delay_seconds: float, address: str) -> None:
        ParticipantError.__init__(
            self,
            f"the coordinator asks to reconnect to {address} in {delay_seconds:g} s",
            "leave, wait and connect again",
        )
        self.delay_seconds = delay_seconds
        self.address = address

    def __reduce__(self) -> tuple[object, ...]:
        return Reconnect, (self.delay_seconds, self.address)


class CredentialsError(ParticipantError, ValueError):
    """A certificate, key or token of this participant's can't be used as it is, or mustn't be sent.

    A Participant that finds this out when it reconnects tries again, for files can be put right.
    """


class AddressError(ParticipantError, ValueError):
    """Text that is no address of a coordinator."""
