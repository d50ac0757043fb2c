"""The certificate that a server shows, and whose certificates it accepts; both are renewed while it runs.

Decides which files can be used: each new pair is tried with the standard library's TLS before gRPC gets it.
A renewal cuts no connection: those that are there keep what they have, new handshakes get the new one. gRPC
asks for it at each handshake, on a thread of its own, so nothing is read or logged there.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

import grpc

from manager.access.watched import Watched, read_bytes

log = logging.getLogger("muster.security")

TRY_INTERVAL: Final = 3600.0
"""Seconds after which a certificate is tried again: it may have expired."""


class CertificateError(ValueError):
    """Files that can't be used. The text says which, and why."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files hold."""

    configuration: grpc.ServerCertificateConfiguration
    until: str  # in the words of the certificate; empty if it can't be used
    trouble: str  # why it won't be accepted by whoever checks it; empty if it will


class Certificates:
    """Of one server."""

    def __init__(self, cert: str, key: str, client_ca: str | None = None) -> None:
        """PEM files. With ``client_ca`` clients need a certificate of that authority.

        Raises CertificateError.
        """
        self._cert = cert
        self._key = key
        self._client_ca = client_ca
        files = [cert, key, *([client_ca] if client_ca is not None else [])]
        self._watched = Watched("the certificates", files, lambda: load(cert, key, client_ca))
        self._refused = ""  # why peers will refuse it; empty if they won't
        self._due: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)  # what gRPC hasn't got yet
        self._tried_at = time.monotonic()
        self._say("serving with", self._watched.value.until, self._watched.value.trouble)

    @property
    def trouble(self) -> str:
        """What is wrong with it, as a sentence; empty if nothing is."""
        if self._watched.trouble or not self._refused:
            return self._watched.trouble
        return f"peers will refuse the certificate in {self._cert}: {self._refused}"

    def credentials(self) -> grpc.ServerCredentials:
        """For a server's port. To be used for one."""
        return grpc.dynamic_ssl_server_credentials(
            self._watched.value.configuration,
            self._fetch,  # type: ignore[arg-type]  # it may return None
            require_client_authentication=self._client_ca is not None,
        )

    def look(self) -> None:
        """Takes the files over if they have changed. Does a little input and output."""
        if self._watched.look():
            loaded = self._watched.value
            self._due.append(loaded.configuration)
            self._say("going on with", loaded.until, loaded.trouble)
        elif time.monotonic() - self._tried_at > TRY_INTERVAL:
            self._try_again()
        else:
            return
        self._tried_at = time.monotonic()

    def _try_again(self) -> None:
        try:
            until, trouble = try_pair(self._cert, self._key)
        except CertificateError:
            return  # so they have changed, and it has been said
        if trouble != self._refused:
            self._say("serving with", until, trouble)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """None: the one that gRPC has already."""
        try:
            return self._due.pop()
        except IndexError:
            return None

    def _say(self, verb: str, until: str, trouble: str) -> None:
        self._refused = trouble
        if trouble:
            log.error("%s the certificate in %s, which peers will refuse: %s", verb, self._cert, trouble)
        else:
            log.info("%s the certificate in %s, which is valid until %s", verb, self._cert, until)


def load(cert: str, key: str, client_ca: str | None) -> Loaded:
    """Raises CertificateError."""
    chain, secret = read_bytes(cert), read_bytes(key)
    authority = None if client_ca is None else read_bytes(client_ca)
    if client_ca is not None:
        _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), client_ca)
    until, trouble = try_pair(cert, key)
    return Loaded(grpc.ssl_server_certificate_configuration([(secret, chain)], authority), until, trouble)


def try_pair(cert: str, key: str) -> tuple[str, str]:
    """Until when a certificate is valid, and why peers will refuse it: one of the two is empty.

    Raises CertificateError if it can't be used at all.
    """
    peer = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    peer.check_hostname = False
    peer.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whoever signed it: that is the peers' business
    _trust(peer, cert)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(cert, key, _refuse_to_ask)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CertificateError(f"the key in {key} is not that of the certificate in {cert}") from None
        if error.reason is None or error.reason == "NO_START_LINE":
            raise CertificateError(f"{key} holds no private key in PEM") from None
        raise CertificateError(f"the certificate in {cert} can't be used: {error.reason}") from None
    except OSError as error:
        raise CertificateError(f"can't read {key}: {error.strerror or error}") from None
    except _EncryptedError:
        raise CertificateError(f"the key in {key} is encrypted; one without a password is needed") from None
    return _shake_hands(server, peer)


def _trust(context: ssl.SSLContext, file: str) -> None:
    try:
        context.load_verify_locations(file)
    except ssl.SSLError:
        raise CertificateError(f"{file} holds no certificate in PEM") from None
    except OSError as error:
        raise CertificateError(f"can't read {file}: {error.strerror or error}") from None


def _shake_hands(server: ssl.SSLContext, peer: ssl.SSLContext) -> tuple[str, str]:
    """A handshake in memory."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = peer.wrap_bio(back, there)
    far = server.wrap_bio(there, back, server_side=True)
    for side in (near, far, near):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return "", str(error.verify_message)
        except ssl.SSLError as error:
            return "", str(error.reason)
    found = near.getpeercert() or {}
    return str(found.get("notAfter", "")), ""


class _EncryptedError(Exception):
    pass


def _refuse_to_ask() -> str:
    """In the place of a prompt for the password."""
    raise _EncryptedError
