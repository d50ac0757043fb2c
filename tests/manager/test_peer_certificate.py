"""What of a participant's certificate gRPC doesn't look at, or leaves out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from manager.access.identity import UnauthenticatedError
from manager.access.peer_certificate import check

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(
    common_names: tuple[str, ...] = (), alternative: tuple[str, ...] = (), expires: datetime = datetime.max
) -> bytes:
    """In PEM, signed by itself."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(expires)
    )
    if alternative:
        names = x509.SubjectAlternativeName([x509.DNSName(name) for name in alternative])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("common_names", "alternative"),
    [(("a",), ()), ((), ("a.example.org",)), (("Charit\u00e9",), ("b",)), ((), ())],
)
def test_a_good_one_is_no_matter(common_names: tuple[str, ...], alternative: tuple[str, ...]) -> None:
    check(certificate(common_names, alternative), NOW)


@pytest.mark.parametrize(
    ("common_names", "alternative"),
    [(("a\0b",), ()), (("\0",), ("a",)), (("a", "a\0b"), ()), ((), ("a\0.example.org",))],
)
def test_a_name_of_which_grpc_gives_a_part_is_refused(
    common_names: tuple[str, ...], alternative: tuple[str, ...]
) -> None:
    with pytest.raises(UnauthenticatedError, match="NUL byte"):
        check(certificate(common_names, alternative), NOW)


def test_one_that_has_expired_is_refused() -> None:
    for seconds in (-60, 60):
        pem = certificate(("a",), expires=NOW + timedelta(seconds=seconds))
        if seconds > 0:
            check(pem, NOW)
            continue
        with pytest.raises(UnauthenticatedError, match="the certificate has expired"):
            check(pem, NOW)


@pytest.mark.parametrize("pem", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"])
def test_what_can_not_be_read_is_refused(pem: bytes) -> None:
    with pytest.raises(UnauthenticatedError, match="can't be read"):
        check(pem, NOW)
