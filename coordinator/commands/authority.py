"""A certificate authority for development, and what it signs: X.509, with the library ``cryptography``.

Decides what is in a certificate. Which files there are is certs.py's business, who is let in by one the
workers'. P-256 keys, for every TLS library has them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650

EARLIER = timedelta(hours=1)
"""A certificate is valid from so long ago on, for clocks that are slow."""

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*", re.ASCII | re.IGNORECASE)
_PARTICIPANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, both as PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


class Authority:
    """Signs certificates for servers and participants."""

    def __init__(self, pair: Pair) -> None:
        """Raises ValueError, with a sentence, if that is no authority of which certificates can be had."""
        try:
            key = serialization.load_pem_private_key(pair.key, None)
            certificate = x509.load_pem_x509_certificate(pair.certificate)
        except (ValueError, TypeError) as error:  # TypeError: a key with a password
            raise ValueError(f"it can't be read: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise ValueError("its key is neither of an elliptic curve nor RSA")
        if key.public_key() != certificate.public_key():
            raise ValueError("its key is another certificate's")
        extensions = certificate.extensions
        try:
            signs = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
            self._subject_key = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        except x509.ExtensionNotFound:
            signs = False
        if not signs:
            raise ValueError("it isn't the certificate of an authority")
        self._key = key
        self._name = certificate.subject
        self.expires = certificate.not_valid_after_utc

    @staticmethod
    def make(days: float = AUTHORITY_DAYS) -> Pair:
        """A new authority's certificate, signed by itself, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Muster development CA")
        builder = (
            _builder(name, name, key.public_key(), datetime.now(UTC) + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
        )
        return _pair(builder.sign(key, hashes.SHA256()), key)

    def server(self, hosts: Sequence[str], days: float) -> Pair:
        """A server's certificate for these names and addresses. Raises ValueError for what can't be one."""
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        common = next((host for host in hosts if len(host) <= 64), "Muster")
        return self._sign(common, ExtendedKeyUsageOID.SERVER_AUTH, days, names)

    def participant(self, participant_id: str, days: float) -> Pair:
        """A participant's certificate. Raises ValueError for an id that can't be in one."""
        common = identity(participant_id)
        return self._sign(common, ExtendedKeyUsageOID.CLIENT_AUTH, days, None)

    def _sign(
        self,
        common: str,
        usage: x509.ObjectIdentifier,
        days: float,
        names: x509.SubjectAlternativeName | None,
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        until = min(datetime.now(UTC) + timedelta(days=days), self.expires)  # none outlives its authority
        builder = (
            _builder(_name(common), self._name, key.public_key(), until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._subject_key),
                critical=False,
            )
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        return _pair(builder.sign(self._key, hashes.SHA256()), key)


@dataclass(frozen=True, slots=True)
class Known:
    """What is in a certificate, as far as it matters here."""

    hosts: tuple[str, ...]
    expires: datetime


def known(certificate: bytes) -> Known:
    """What is in a certificate in PEM. Raises ValueError if it can't be read."""
    read = x509.load_pem_x509_certificate(certificate)
    try:
        names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = (
            *names.get_values_for_type(x509.DNSName),
            *map(str, names.get_values_for_type(x509.IPAddress)),
        )
    except x509.ExtensionNotFound:
        hosts = ()
    return Known(hosts, read.not_valid_after_utc)


def host(text: str) -> str:
    """A host as certificates have it. Raises ValueError, with a sentence, for what is none."""
    try:
        return str(ipaddress.ip_address(text.removeprefix("[").removesuffix("]")))
    except ValueError:
        pass
    if not _HOST.fullmatch(text) or len(text) > 253:
        raise ValueError(f"{text!r} is no host; write a name or an address without a port, as in localhost")
    return text.lower()


def identity(participant_id: str) -> str:
    """A participant's id as certificates have it. Raises ValueError, with a sentence, for one they can't."""
    if not _PARTICIPANT.fullmatch(participant_id):
        raise ValueError(
            f"{participant_id!r} can't be a participant's id here: "
            f"write up to 64 letters, digits and ._@-, beginning with a letter or a digit"
        )
    return participant_id


def _host(text: str) -> x509.GeneralName:
    text = host(text)
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Muster"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - EARLIER)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    """An authority signs certificates and lists of revoked ones; all others sign handshakes."""
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
