"""Decides who a participant is, from what it shows: a token, a certificate, and the id in its hello. Sans-IO.

The texts of its errors are for whoever is refused. They don't tell which names exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from manager.core.members import ANONYMOUS, printable, recognisable

_SCHEME: Final = "bearer"


class UnauthenticatedError(Exception):
    """There are no credentials, or they are worth nothing."""


class ImpostorError(Exception):
    """The credentials are those of another participant than the hello names."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who has opened a stream, as its credentials say."""

    name: str
    token: bytes | None = None  # the digest of the one that was shown


def bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The token in the metadata of a call: ``authorization: Bearer <token>`` (RFC 6750, section 2.1).

    Raises UnauthenticatedError.
    """
    found = [value for key, value in metadata if key == "authorization"]
    if not found:
        raise UnauthenticatedError(
            "a token is needed (--token-file, or token=), "
            "in the call's metadata: authorization: Bearer <token>"
        )
    if len(found) > 1 or not isinstance(found[0], str):
        raise UnauthenticatedError("exactly one token is needed, in the call's metadata")
    scheme, _, token = found[0].partition(" ")
    if scheme.lower() != _SCHEME or not token.strip():
        raise UnauthenticatedError("the call's metadata must say: authorization: Bearer <token>")
    return token.strip()


def certified(properties: Mapping[str, Iterable[bytes]]) -> str:
    """The name in a participant's certificate: the common name, or the first alternative name without one.

    ``properties`` are gRPC's of the connection, whose TLS has verified the certificate. Raises
    UnauthenticatedError if there is no name that can be used.
    """
    for key in ("x509_common_name", "x509_subject_alternative_name"):
        for value in properties.get(key, ()):
            if value:
                return _usable(value)
    raise UnauthenticatedError("the certificate has neither a common name nor an alternative name")


def _usable(value: bytes) -> str:
    try:
        name = value.decode()
    except UnicodeDecodeError:
        raise UnauthenticatedError("the name in the certificate is not UTF-8") from None
    if not recognisable(name):
        raise UnauthenticatedError(
            f"the name in the certificate begins with {ANONYMOUS!r}: such names are made up by managers"
        )
    return name


def agreed(token: Identity | None, certificate: str | None) -> Identity | None:
    """Who it is if both are shown, one of them, or none. Raises UnauthenticatedError if they differ."""
    if token is None:
        return None if certificate is None else Identity(certificate)
    if certificate is not None and certificate != token.name:
        raise UnauthenticatedError(
            f"the token is that of {printable(token.name)} and the certificate that of "
            f"{printable(certificate)}; both must be the same participant's"
        )
    return token


def claimed(identity: Identity, participant_id: str) -> str:
    """The id of a participant whose hello names this one, or none. Raises ImpostorError."""
    if participant_id not in ("", identity.name):
        raise ImpostorError(
            f"the hello names {printable(participant_id)}, but the credentials are those of "
            f"{printable(identity.name)}; leave the name out, or use the credentials that go with it"
        )
    return identity.name
