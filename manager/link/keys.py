"""The keys of a link over TCP: which files they are in, and how they are read.

CURVE, an elliptic curve scheme of ZeroMQ's (RFC 26): each end has a pair of keys and knows the other's public
one. In a directory there are, in the format of ZeroMQ's own certificates (zmq.auth),

- coordinator.key (public) and coordinator.key_secret,
- worker.key and worker.key_secret, which all workers of a machine share,
- worker-ANYTHING.key: public keys of other workers that may connect, too.

A worker needs coordinator.key and worker.key_secret alone. coordinator/commands/certs.py makes them.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import zmq
import zmq.auth
from zmq.utils import z85

from manager.errors import StartError

COORDINATOR, WORKER = "coordinator", "worker"
PUBLIC, SECRET = ".key", ".key_secret"

ZAP_DOMAIN = b"muster.link"
"""By which whoever is asked for admission knows the link's socket (RFC 27)."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A public and a secret key, as text (Z85)."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CoordinatorKeys:
    pair: Pair
    allowed: frozenset[bytes]
    """Public keys of the workers that may connect, as ZeroMQ asks for them: 32 bytes each."""


@dataclass(frozen=True, slots=True)
class WorkerKeys:
    pair: Pair
    coordinator: bytes
    """The coordinator's public key, as text (Z85)."""


def coordinator_keys(directory: Path) -> CoordinatorKeys:
    """What the coordinator has of these keys. Raises StartError, with a sentence, if they can't be used."""
    try:
        own = _pair(directory / f"{COORDINATOR}{SECRET}")
        workers = [directory / f"{WORKER}{PUBLIC}", *sorted(directory.glob(f"{WORKER}-*{PUBLIC}"))]
        return CoordinatorKeys(own, frozenset(z85.decode(_public(file)) for file in workers))
    except (OSError, ValueError) as error:
        raise _unusable(directory, error) from None


def worker_keys(directory: Path) -> WorkerKeys:
    """What a worker needs of these keys. Raises StartError, with a sentence, if they can't be used."""
    try:
        return WorkerKeys(
            _pair(directory / f"{WORKER}{SECRET}"), _public(directory / f"{COORDINATOR}{PUBLIC}")
        )
    except (OSError, ValueError) as error:
        raise _unusable(directory, error) from None


def keys_for(endpoint: str, directory: Path | None) -> WorkerKeys | None:
    """A worker's keys for the link at this endpoint; None if it needs none. Raises StartError."""
    if endpoint.startswith("tcp:") == (directory is None):
        raise StartError(f"--link-keys goes with a link over TCP, and that with it; this one is {endpoint}")
    return None if directory is None else worker_keys(directory)


def as_file(public: bytes, secret: bytes | None = None) -> bytes:
    """A key file's content: of the public key, or of both."""
    lines = [b"metadata", b"curve", b'    public-key = "%b"' % public]
    if secret is not None:
        lines.append(b'    secret-key = "%b"' % secret)
    return b"\n".join(lines) + b"\n"


def _pair(file: Path) -> Pair:
    if stat.S_IMODE(file.stat().st_mode) & 0o077 and hasattr(os, "getuid"):  # not on Windows
        raise ValueError(f"others can read {file.name}; chmod 600 it")
    public, secret = _load(file)
    if secret is None:
        raise ValueError(f"{file.name} holds no secret key")
    try:
        matches = zmq.curve_public(secret) == public
    except (zmq.ZMQError, ValueError):
        matches = False
    if not matches:
        raise ValueError(f"the secret key in {file.name} is not that of the public one")
    return Pair(public, secret)


def _public(file: Path) -> bytes:
    public, _ = _load(file)
    try:
        if len(z85.decode(public)) == 32:
            return public
    except (ValueError, KeyError):  # what z85 makes of characters that it doesn't have
        pass
    raise ValueError(f"{file.name} holds no public key of 40 characters")


def _load(file: Path) -> tuple[bytes, bytes | None]:
    file.stat()  # its absence has words of its own
    try:
        return zmq.auth.load_certificate(file)
    except ValueError:
        raise ValueError(f"{file.name} holds no public key") from None


def _unusable(directory: Path, error: OSError | ValueError) -> StartError:
    why = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else error
    return StartError(
        f"can't use the link's keys in {directory}: {why} (`coordinator certs` makes such keys)"
    )
