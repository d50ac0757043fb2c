"""Certificates and tokens for tests: an authority, and files of what was issued."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import trustme
from click.testing import CliRunner

from coordinator.commands import cli

PAST = {"not_before": datetime(2000, 1, 1), "not_after": datetime(2001, 1, 1)}
FUTURE = {"not_before": datetime(2900, 1, 1), "not_after": datetime(2901, 1, 1)}


class Pair(NamedTuple):
    """Names of files."""

    cert: str
    key: str

    @property
    def options(self) -> list[str]:
        """For a server."""
        return [f"--tls-cert={self.cert}", f"--tls-key={self.key}"]

    def bytes(self) -> tuple[bytes, bytes]:
        """Key and certificate, in gRPC's order."""
        return Path(self.key).read_bytes(), Path(self.cert).read_bytes()

    def replace(self, other: Pair) -> None:
        """Puts another pair in the place of this one, the certificate first."""
        for mine, new in zip(self, other, strict=True):
            copy = Path(f"{mine}.new")
            copy.write_bytes(Path(new).read_bytes())
            copy.replace(mine)


class Authority:
    """Whose certificates are good."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self._name = name
        self._ca = trustme.CA()
        self._issued = 0
        self.pem = self._ca.cert_pem.bytes()
        self.file = str(directory / f"{name}.pem")
        Path(self.file).write_bytes(self.pem)

    def issue(self, *names: str, common_name: str | None = None, **validity: Any) -> Pair:
        """A certificate with these alternative names."""
        self._issued += 1
        stem = self._directory / f"{self._name}-{self._issued}"
        return written(self._ca.issue_cert(*names, common_name=common_name, **validity), stem)

    def server(self, **validity: Any) -> Pair:
        """One for a server on loopback."""
        return self.issue("localhost", "127.0.0.1", common_name=f"server {self._issued}", **validity)

    def participant(self, name: str, **validity: Any) -> Pair:
        return self.issue("participant.example.org", common_name=name, **validity)


def written(certificate: trustme.LeafCert, stem: Path) -> Pair:
    pair = Pair(f"{stem}.pem", f"{stem}.key")
    Path(pair.cert).write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(pair.key)
    return pair


class Tokens:
    """A file of tokens, and those that were issued, by name."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "tokens"
        self.file.touch()
        self.issued: dict[str, str] = {}

    @property
    def option(self) -> str:
        return f"--tokens={self.file}"

    def issue(self, *names: str) -> None:
        for name in names:
            self.issued[name] = self.run("issue", name).strip()

    def revoke(self, name: str) -> None:
        self.run("revoke", name)

    def run(self, *arguments: str) -> str:
        result = CliRunner().invoke(cli.main, ["tokens", *arguments, f"--file={self.file}"])
        assert result.exit_code == 0, result.output
        return result.stdout
