"""Certificates for tests, as files: of a CA of their own, good and bad ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import grpc
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

PAST: Final = (datetime(2020, 1, 1), datetime(2021, 1, 1))
FUTURE: Final = (datetime(2090, 1, 1), datetime(2091, 1, 1))


@dataclass(frozen=True)
class Pair:
    """A certificate, with its chain, and its key."""

    cert: Path
    key: Path


class Authority:
    """A CA. ``ca`` is the file of its own certificate."""

    def __init__(self, directory: Path, parent: trustme.CA | None = None) -> None:
        directory.mkdir()
        self._directory = directory
        self._ca = parent.create_child_ca() if parent is not None else trustme.CA()
        self.ca = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca)

    def child(self) -> Authority:
        """A CA that this one vouches for."""
        return Authority(self._directory / "child", self._ca)

    def issue(
        self, *names: str, common_name: str | None = None, valid: tuple[datetime, datetime] | None = None
    ) -> Pair:
        """A certificate for these names, whose file has the first one's."""
        begin, end = valid or (None, None)
        made = self._ca.issue_cert(*names, common_name=common_name, not_before=begin, not_after=end)
        stem = (common_name or names[0]) + ("" if valid is None else f"-{valid[0].year}")
        pair = Pair(self._directory / f"{stem}.pem", self._directory / f"{stem}.key")
        pair.cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        made.private_key_pem.write_to_path(pair.key)
        return pair

    def revoke(self, pairs: Sequence[Pair]) -> Path:
        """The file of a list of certificates that aren't good any more."""
        key = load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        assert isinstance(key, EllipticCurvePrivateKey)
        now = datetime.now(UTC)
        issuer = x509.load_pem_x509_certificate(self.ca.read_bytes()).subject
        builder = x509.CertificateRevocationListBuilder(issuer, now, now + timedelta(days=1))
        for pair in pairs:
            serial = x509.load_pem_x509_certificate(pair.cert.read_bytes()).serial_number
            builder = builder.add_revoked_certificate(x509.RevokedCertificateBuilder(serial, now).build())
        file = self._directory / "revoked.pem"
        file.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
        return file


def server_credentials(pair: Pair, *, client_ca: Path | None = None) -> grpc.ServerCredentials:
    """For a gRPC server; with ``client_ca`` it wants a certificate of that CA."""
    return grpc.ssl_server_credentials(
        [(pair.key.read_bytes(), pair.cert.read_bytes())],
        client_ca.read_bytes() if client_ca is not None else None,
        client_ca is not None,
    )
