"""Decides what gRPC doesn't about a participant's certificate, which TLS has verified. Sans-IO.

gRPC gives its names as far as their first NUL byte, so that "a", NUL, "b" would be known as "a". And a TLS
session that is resumed, or a connection that is there, isn't asked whether its certificate has expired. Loads
``cryptography``: only where participants have certificates.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import NameOID

from manager.access.identity import UnauthenticatedError


def check(pem: bytes, now: datetime) -> None:
    """Raises UnauthenticatedError if a participant can't be known by this certificate, or not any more."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        expired = certificate.not_valid_after_utc < now
        names = [name.value for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        names += _alternative_names(certificate)
    except ValueError:
        raise UnauthenticatedError("the certificate can't be read") from None
    if expired:
        raise UnauthenticatedError("the certificate has expired")
    if any(0 in (name if isinstance(name, bytes) else name.encode()) for name in names):
        raise UnauthenticatedError("the name in the certificate has a NUL byte in it")


def _alternative_names(certificate: x509.Certificate) -> Iterable[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return [name.value for name in names if isinstance(name.value, str)]
