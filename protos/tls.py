"""TLS as a client has it, a participant or a script: whom it trusts, who it is, and why a connection fails.

Decides which files are read and when (anew for each connection, so that renewed ones count), what is wrong
with them, where secrets may go without TLS, and what a failed connection is put down to. gRPC makes the real
connections, but says little of why one fails ("Socket closed"): ``diagnose`` makes another one, with the
standard library, and looks. What follows from a failure, each client decides for itself.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import grpc

DIAGNOSIS_TIME: Final = 3.0
"""Seconds that a diagnosis may take."""

_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # macOS, BSD
)

_CERTIFICATE: Final = b"CERTIFICATE-----"
_KEY: Final = b"PRIVATE KEY-----"

T = TypeVar("T")


class TLSError(ValueError):
    """A file that TLS needs can't be used. The text says which and why, in one sentence."""


@dataclass(frozen=True)
class TLS:
    """Whom a client trusts, and who it is: paths of PEM files, which are read anew for each connection.

    ``ca`` holds the certificates of the authorities that may vouch for the server; None means those that the
    system trusts (the variable SSL_CERT_FILE names others). ``cert`` and ``key``, both or none, are the
    client's own certificate, followed by its chain, and the private key to it, not encrypted: for servers
    that want to know who connects (mutual TLS).
    """

    ca: str | os.PathLike[str] | None = None
    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """What grpc.aio.secure_channel takes. Reads the files.

        Raises TLSError if one can't be read, holds something else, or doesn't go with the others.
        """
        if (self.cert is None) != (self.key is None):
            raise TLSError("a client's certificate and its private key go together: give both, or neither")
        ca = self._authorities()
        roots = None if ca is None else _read(ca, "CA certificates", _CERTIFICATE)  # None: a list of gRPC's
        cert = None if self.cert is None else _read(self.cert, "certificate", _CERTIFICATE)
        key = None if self.key is None else _read(self.key, "private key", _KEY)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca is not None:
            self._trust(context)  # what doesn't fit gRPC would only log, and fail to connect
        self._identify(context)
        return grpc.ssl_channel_credentials(roots, key, cert)

    def context(self) -> ssl.SSLContext:
        """The same for the standard library, trusting exactly whom gRPC does. Raises TLSError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.set_alpn_protocols(["h2"])
        self._trust(context)
        self._identify(context)
        return context

    def _trust(self, context: ssl.SSLContext) -> None:
        ca = self._authorities()
        try:
            if ca is None:
                context.load_default_certs()
            else:
                context.load_verify_locations(cafile=ca)
        except OSError as error:
            raise TLSError(f"the CA certificates in {ca} can't be used ({_words(error)})") from None

    def _identify(self, context: ssl.SSLContext) -> None:
        if self.cert is None:
            return
        try:
            context.load_cert_chain(self.cert, self.key, password=self._ask_for_no_password)
        except OSError as error:
            if "key values mismatch" in _words(error):
                text = f"the private key in {self.key} isn't the one to the certificate in {self.cert}"
            else:
                text = f"the certificate in {self.cert} or its key in {self.key} can't be used"
            raise TLSError(f"{text} ({_words(error)})") from None

    def _ask_for_no_password(self) -> str:
        raise TLSError(f"the private key in {self.key} is encrypted; one without a passphrase is needed")

    def _authorities(self) -> str | os.PathLike[str] | None:
        """The file of the CAs; None if the system has none. gRPC wouldn't look for the system's, but use a
        list of its own, unless its own variable names another."""
        from pathlib import Path  # here, and below: most clients begin without

        if self.ca is not None:
            return self.ca
        named = os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"), ssl.get_default_verify_paths().cafile
        return next((path for path in (*named, *_BUNDLES) if path and Path(path).is_file()), None)


def _read(path: str | os.PathLike[str], what: str, mark: bytes) -> bytes:
    from pathlib import Path

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise TLSError(f"can't read the {what} in {os.fspath(path)!r} ({error.strerror or error})") from None
    if mark not in data:
        raise TLSError(f"there is no {what.removesuffix('s')} in {path} (PEM is needed)")
    return data


def is_loopback(host: str) -> bool:
    """Whether what is sent to ``host``, a name or an IP address, stays on this machine.

    Nothing with a ``%`` does: gRPC decodes it as in a URI, so that 127.0.0.1%2eexample.org is another host.
    """
    import ipaddress

    if host.lower() == "localhost":
        return True
    try:
        return "%" not in host and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def diagnose(host: str, port: int, tls: TLS | None) -> str | None:
    """Why a client with ``tls`` (None: in plaintext) can't connect to the server at ``host`` and ``port``.

    The answer is a sentence without a full stop: which side is at fault, why, and what to do. None if it
    doesn't show: nobody answers, or all is well with TLS. Makes a connection or two to find out, and takes
    DIAGNOSIS_TIME at most. Raises nothing.
    """
    deadline = asyncio.get_running_loop().time() + DIAGNOSIS_TIME
    try:
        context = tls.context() if tls is not None else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    except TLSError as error:
        return str(error)
    seen = await _shake_hands(host, port, context, deadline)
    if seen is None or not seen.first:
        return None
    if tls is None:
        return _SPEAKS_TLS if seen.speaks_tls else None
    if isinstance(seen.error, ssl.SSLCertVerificationError):
        if seen.error.verify_code not in _OTHER_NAME:
            return _distrust(seen.error, tls)
        context.check_hostname = False
        other = await _shake_hands(host, port, context, deadline)
        return _other_name(host, other.names if other is not None else "")
    return _failure(seen, tls)


@dataclass
class _Seen:
    """What came of a handshake."""

    first: bytes = b""  # of what the server sent
    sent: bytes = b""  # by the client, until the handshake was over
    http2: bool = False
    names: str = ""  # that the server's certificate is for
    error: ssl.SSLError | None = None
    closed: bool = False  # by the server, without a reason

    @property
    def speaks_tls(self) -> bool:
        return self.first[:1] in (b"\x15", b"\x16") and self.first[1:2] in (b"\x03", b"")

    @property
    def asked(self) -> bool:
        """Whether the server asked for a certificate: then the client has sent one, or that it has none.

        In TLS 1.2 that shows. In 1.3 it is encrypted, but makes for a record beside that of the Finished.
        """
        encrypted, sent = 0, self.sent
        while len(sent) > 5:
            kind, end = sent[0], 5 + int.from_bytes(sent[3:5], "big")
            if kind == 0x16 and sent[5] == 0x0B:
                return True
            encrypted += kind == 0x17
            sent = sent[end:]
        return encrypted > 1


async def _shake_hands(host: str, port: int, context: ssl.SSLContext, deadline: float) -> _Seen | None:
    """Connects, shakes hands, and waits for the server's first byte: in TLS 1.3 a client learns only after
    the handshake that it is refused. None if that didn't come about by ``deadline``."""
    try:
        async with asyncio.timeout_at(deadline):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                return await _shake_hands_over(reader, writer, context, host)
            finally:
                writer.transport.abort()
    except (OSError, ValueError):  # nobody there in time, or a name that can be none
        return None


async def _shake_hands_over(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext, host: str
) -> _Seen:
    seen = _Seen()
    received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(received, to_send, server_hostname=host)

    async def complete(step: Callable[[], T]) -> T:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                pass
            finally:
                data = to_send.read()
                seen.sent += data
                writer.write(data)
            data = b""
            with suppress(ConnectionError):
                data = await reader.read(65536)
            seen.first = seen.first or data
            if data:
                received.write(data)
            else:
                received.write_eof()

    try:
        await complete(tls.do_handshake)
        seen.names = _names(tls.getpeercert() or {})
        seen.http2 = tls.selected_alpn_protocol() == "h2"
        if seen.http2:
            seen.closed = not await complete(lambda: tls.read(1))
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        seen.closed = True
    except ssl.SSLError as error:
        seen.error = error
    return seen


def _names(certificate: Mapping[str, Any]) -> str:
    """Those that a certificate is for, as ssl.SSLObject.getpeercert has it."""
    import ipaddress

    names = []
    for kind, name in certificate.get("subjectAltName", ()):
        if kind == "DNS":
            names.append(name)
        elif kind == "IP Address":
            names.append(str(ipaddress.ip_address(name.strip())))  # 0:0:0:0:0:0:0:1 is written ::1
    return " and ".join(names[:5] + ["others"] * (len(names) > 5))


# From here on: the words.

_ALERT: Final = re.compile(r"(?:sslv3|tlsv1\d?) (?:alert )?(.+)")
"""How OpenSSL names an alert of the other side."""

_OTHER_NAME: Final = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_EXPIRED: Final = 10
_NOT_YET_VALID: Final = 9
_UNKNOWN_CA: Final = (2, 18, 19, 20, 21)

_SPEAKS_TLS: Final = (
    "the server speaks TLS, and this client plaintext; connect with TLS (tls=, or --ca or --tls)"
)
SPEAKS_NO_TLS: Final = (
    "the server doesn't speak TLS; start it with --tls-cert and --tls-key, or check the address"
)
_SPEAKS_NO_GRPC: Final = "the server speaks TLS, but not gRPC (no HTTP/2); check the address"
_NO_VERSION: Final = "the server speaks no version of TLS that this client does; it needs 1.2 or later"
WANTED: Final = "the server wants a client certificate; give one (cert= and key=, or --cert and --key)"

_OWN_FAULTS: Final[Mapping[int, str]] = {
    _EXPIRED: "has expired; renew it",
    _NOT_YET_VALID: "isn't valid yet; set this machine's clock right, or wait",
}

_REFUSALS: Final[Mapping[str, str]] = {
    "certificate expired": "it has expired; renew it",
    "certificate revoked": "it has been revoked; get a new one",
    "unknown ca": "it is of a CA that the server doesn't know; get one of the server's --tls-client-ca",
}


def _distrust(error: ssl.SSLCertVerificationError, tls: TLS) -> str:
    """This client doesn't trust the server's certificate."""
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by this machine's clock"
    if error.verify_code == _EXPIRED:
        return f"the server's certificate or its CA's has expired ({now}); renew it on the server"
    if error.verify_code == _NOT_YET_VALID:
        return f"the server's certificate or its CA's isn't valid yet ({now}); set the clock right"
    if error.verify_code in _UNKNOWN_CA:
        whose = "the system trusts" if tls.ca is None else f"is in {tls.ca}"
        return f"the server's certificate is of no CA that {whose}; give the server's CA (ca=, or --ca)"
    return f"the server's certificate can't be trusted ({error.verify_message})"


def _other_name(host: str, names: str) -> str:
    return (
        f"the server's certificate is for {names or 'another name'}, not for {host}; "
        f"connect to a name that it is for, or give the server one for {host}"
    )


def _failure(seen: _Seen, tls: TLS) -> str | None:
    """Why a handshake failed, though it wasn't for the server's certificate."""
    if not seen.speaks_tls:
        return SPEAKS_NO_TLS
    if seen.error is not None:
        words = _words(seen.error)
        if alert := _ALERT.fullmatch(words):
            return _refusal(alert[1], seen, tls)
        return _NO_VERSION if words == "unsupported protocol" else f"the TLS handshake fails ({words})"
    if not seen.closed:
        return None if seen.http2 else _SPEAKS_NO_GRPC
    if not seen.asked:
        return None
    if tls.cert is None:
        return WANTED
    if (fault := _own_fault(tls)) is not None:
        return f"the client certificate in {tls.cert} {fault}"
    return (  # without a word, as gRPC's servers do
        f"the server hangs up on the client certificate in {tls.cert}: most likely it is of a CA that the "
        "server doesn't know, or has expired or been revoked; get a new one of the server's --tls-client-ca"
    )


def _own_fault(tls: TLS) -> str | None:
    """Why any server refuses this client's certificate, tried in memory. None if it doesn't show."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whoever signed it
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        server.load_verify_locations(tls.cert)
        for context in (server, client):
            tls._identify(context)
        near, far = client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
        for side in (near, far, near, far):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return _OWN_FAULTS.get(error.verify_code)
    except (OSError, TLSError):
        pass
    return None


def _refusal(alert: str, seen: _Seen, tls: TLS) -> str:
    """The server ended the handshake and said why."""
    if alert == "protocol version":
        return _NO_VERSION
    if not seen.asked:
        return f"the server refuses the TLS handshake ({alert})"
    if tls.cert is None:
        return WANTED
    reason = _REFUSALS.get(alert, f"{alert}; get another one")
    return f"the server refuses the client certificate in {tls.cert}: {reason}"


def _words(error: OSError) -> str:
    """What went wrong in OpenSSL's words, without its places in the code: "key values mismatch"."""
    words = getattr(error, "reason", None) or error.strerror or str(error)
    return re.sub(r"\[\w+\] | \(_?ssl\.c:\d+\)", "", words).replace("_", " ").lower()
