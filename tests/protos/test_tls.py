"""What can be wrong with a client's files, and what a failed TLS connection is put down to."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from protos import tls as module
from protos.tls import TLS, TLSError, diagnose, is_loopback
from tests.certificates import FUTURE, PAST, Authority, Pair, server_credentials

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "another")


@pytest.fixture(scope="module")
def server(authority: Authority) -> Pair:
    return authority.issue(HOST, "localhost")


@pytest.fixture(scope="module")
def client(authority: Authority) -> Pair:
    return authority.issue("device.example", common_name="device")


# The files.


def test_good_files_make_credentials(authority: Authority, client: Pair) -> None:
    assert TLS(authority.ca).credentials()
    assert TLS(str(authority.ca), str(client.cert), str(client.key)).credentials()
    assert TLS().credentials()


def garbled(path: Path, directory: Path) -> Path:
    copy = directory / f"garbled-{path.name}"
    first, *_, last = path.read_text().splitlines()
    copy.write_text("\n".join([first, "AAAA", last]) + "\n")
    return copy


def test_files_that_can_not_be_used_are_told_in_one_sentence(
    authority: Authority, stranger: Authority, client: Pair, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere.pem"
    other = stranger.issue("device.example")
    key = load_pem_private_key(client.key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    for tls, text in [
        (TLS(nowhere), f"can't read the CA certificates in '{nowhere}' (No such file or directory)"),
        (TLS(""), "can't read the CA certificates in ''"),
        (TLS(tmp_path), f"can't read the CA certificates in '{tmp_path}' (Is a directory)"),
        (TLS(client.key), f"there is no CA certificate in {client.key}"),
        (TLS(garbled(authority.ca, tmp_path)), "garbled-ca.pem can't be used ("),
        (TLS(authority.ca, cert=client.cert), "give both, or neither"),
        (TLS(authority.ca, key=client.key), "give both, or neither"),
        (TLS(authority.ca, nowhere, client.key), f"can't read the certificate in '{nowhere}'"),
        (TLS(authority.ca, client.cert, nowhere), f"can't read the private key in '{nowhere}'"),
        (TLS(authority.ca, client.key, client.cert), f"there is no certificate in {client.key}"),
        (TLS(authority.ca, client.cert, client.cert), f"there is no private key in {client.cert}"),
        (TLS(authority.ca, client.cert, other.key), f"{other.key} isn't the one to the certificate in"),
        (TLS(authority.ca, client.cert, locked), f"the private key in {locked} is encrypted"),
        (TLS(authority.ca, garbled(client.cert, tmp_path), client.key), "or its key in"),
        (TLS(authority.ca, client.cert, garbled(client.key, tmp_path)), "or its key in"),
    ]:
        with pytest.raises(TLSError) as caught:
            tls.credentials()
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "_ssl.c" not in str(caught.value)


def test_files_are_read_each_time(authority: Authority, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    tls = TLS(ca)
    with pytest.raises(TLSError):
        tls.credentials()
    ca.write_bytes(authority.ca.read_bytes())
    tls.credentials()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1", "::1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        *("0.0.0.1", "10.0.0.1", "::", "fe80::1%eth0", "localhost.example.org", "127.0.0.1.example.org", ""),
        # What gRPC would make another host of, or a list of hosts:
        *("127.0.0.1%2eexample.org", "127.0.0.1%3A1%2C192.0.2.1", "::1%2eexample.org"),
    ],
)
def test_what_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)


# Why a connection fails. First with servers that send alerts, as OpenSSL does.


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that does so with each connection; its port."""

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # shut down
                return
            with connection, suppress(OSError):
                serve(connection)

    with socket.create_server((HOST, 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def tls_server(
    pair: Pair,
    client_ca: Path | None = None,
    revoked: Path | None = None,
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    protocol: str = "h2",
) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    context.maximum_version = newest
    context.set_alpn_protocols([protocol])
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    if revoked is not None:
        context.load_verify_locations(revoked)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            secure.sendall(b"settings")
            secure.recv(1)

    with listening(serve) as port:
        yield port


def why(port: int, tls: TLS | None, host: str = HOST) -> str | None:
    return asyncio.run(diagnose(host, port, tls))


def test_nothing_is_found_where_all_is_well(authority: Authority, server: Pair, client: Pair) -> None:
    with tls_server(server) as port:
        assert why(port, TLS(authority.ca)) is None
        assert why(port, TLS(authority.ca), "localhost") is None
        assert why(port, TLS(authority.ca, client.cert, client.key)) is None
    with tls_server(server, client_ca=authority.ca) as port:
        assert why(port, TLS(authority.ca, client.cert, client.key)) is None


def test_a_certificate_of_the_servers_that_is_out_of_date(authority: Authority) -> None:
    with tls_server(authority.issue(HOST, valid=PAST)) as port:
        text = why(port, TLS(authority.ca)) or ""
        assert text.startswith("the server's certificate or its CA's has expired (20")
        assert text.endswith("UTC by this machine's clock); renew it on the server")
    with tls_server(authority.issue(HOST, valid=FUTURE)) as port:
        text = why(port, TLS(authority.ca)) or ""
        assert text.startswith("the server's certificate or its CA's isn't valid yet (20")
        assert text.endswith("UTC by this machine's clock); set the clock right")


def test_a_server_of_another_name(authority: Authority) -> None:
    with tls_server(authority.issue("a.example", "b.example", "10.0.0.1", "::1")) as port:
        for host in (HOST, "localhost"):
            assert why(port, TLS(authority.ca), host) == (
                f"the server's certificate is for a.example and b.example and 10.0.0.1 and ::1, not for "
                f"{host}; connect to a name that it is for, or give the server one for {host}"
            )
    with tls_server(authority.issue(*[f"{letter}.example" for letter in "abcdefg"])) as port:
        assert "e.example and others, not for" in (why(port, TLS(authority.ca)) or "")


def test_a_server_of_an_unknown_ca(authority: Authority, stranger: Authority, server: Pair) -> None:
    with tls_server(server) as port:
        assert why(port, TLS(stranger.ca)) == (
            f"the server's certificate is of no CA that is in {stranger.ca}; "
            "give the server's CA (ca=, or --ca)"
        )
        assert "of no CA that the system trusts;" in (why(port, TLS()) or "")


def test_whom_the_system_trusts_can_be_said_by_a_variable(
    authority: Authority, server: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = "SSL_CERT_FILE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
    for variable in variables:
        monkeypatch.delenv(variable, raising=False)
    for variable in variables:
        with monkeypatch.context() as patch, tls_server(server) as port:
            patch.setenv(variable, str(authority.ca))
            assert why(port, TLS()) is None


def test_whom_grpc_trusts_is_not_called_unknown(authority: Authority) -> None:
    child = authority.child()
    with tls_server(child.issue(HOST)) as port:
        assert why(port, TLS(authority.ca)) is None
        assert why(port, TLS(child.ca)) is None


WANTED = "the server wants a client certificate; give one (cert= and key=, or --cert and --key)"

VERSIONS = pytest.mark.parametrize(
    "newest", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2], ids=lambda version: version.name
)


@VERSIONS
def test_a_server_that_wants_a_certificate(
    authority: Authority, server: Pair, newest: ssl.TLSVersion
) -> None:
    with tls_server(server, client_ca=authority.ca, newest=newest) as port:
        assert why(port, TLS(authority.ca)) == WANTED


@VERSIONS
def test_a_server_that_refuses_a_certificate(
    authority: Authority, stranger: Authority, server: Pair, newest: ssl.TLSVersion
) -> None:
    good = authority.issue("good.example")
    bad = authority.issue("bad.example")
    expired = authority.issue("expired.example", valid=PAST)
    unknown = stranger.issue("unknown.example")
    revoked = authority.revoke([bad])
    with tls_server(server, client_ca=authority.ca, revoked=revoked, newest=newest) as port:
        assert why(port, TLS(authority.ca, good.cert, good.key)) is None
        for pair, reason in [
            (bad, "it has been revoked; get a new one"),
            (expired, "it has expired; renew it"),
            (unknown, "it is of a CA that the server doesn't know; get one of the server's --tls-client-ca"),
        ]:
            assert why(port, TLS(authority.ca, pair.cert, pair.key)) == (
                f"the server refuses the client certificate in {pair.cert}: {reason}"
            )


def test_a_server_without_http2(authority: Authority, server: Pair) -> None:
    with tls_server(server, protocol="http/1.1") as port:
        assert why(port, TLS(authority.ca)) == (
            "the server speaks TLS, but not gRPC (no HTTP/2); check the address"
        )


def test_a_client_in_plaintext(server: Pair) -> None:
    with tls_server(server) as port:
        assert why(port, None) == (
            "the server speaks TLS, and this client plaintext; connect with TLS (tls=, or --ca or --tls)"
        )


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"\x15\x03\x01\x00\x02\x02\x46", "the server speaks no version of TLS that this client does"),
        (b"\x15\x03\x03\x00\x02\x02\x50", "the server refuses the TLS handshake (internal error)"),
        (b"\x15\x03\x03\x00\x02\x02\x70", "the server refuses the TLS handshake (unrecognized name)"),
        (b"\x16\x03\x03\x00\x04nope", "the TLS handshake fails ("),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "the server doesn't speak TLS; start it with --tls-cert"),
        (b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", "the server doesn't speak TLS; start it with --tls-cert"),
        (b"SSH-2.0-", "the server doesn't speak TLS; start it with --tls-cert"),
        (b"", None),
    ],
)
def test_servers_that_answer_something_else(authority: Authority, answer: bytes, text: str | None) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    with listening(serve) as port:
        found = why(port, TLS(authority.ca))
        assert found is text if text is None else (found or "").startswith(text)


@pytest.mark.timed
def test_a_server_that_only_listens_costs_little_time(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DIAGNOSIS_TIME", 0.2)
    with socket.create_server((HOST, 0)) as listener:
        begin = time.monotonic()
        assert why(listener.getsockname()[1], TLS(authority.ca)) is None
        assert why(listener.getsockname()[1], None) is None
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize("host", [HOST, "..", "-.invalid", "x" * 70])
def test_where_nobody_is_there_is_nothing_to_see(authority: Authority, host: str) -> None:
    assert why(1, TLS(authority.ca), host) is None
    assert why(1, None, host) is None


def test_files_that_have_become_useless_meanwhile_are_a_reason_too(tmp_path: Path) -> None:
    assert "can't be used" in (why(1, TLS(tmp_path / "gone.pem")) or "")


# Then with gRPC's own servers, which hang up without an alert.


def why_with_grpc(credentials: grpc.ServerCredentials | None, tls: TLS | None) -> str | None:
    async def scenario() -> str | None:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        if credentials is None:
            port = server.add_insecure_port(f"{HOST}:0")
        else:
            port = server.add_secure_port(f"{HOST}:0", credentials)
        await server.start()
        try:
            return await diagnose(HOST, port, tls)
        finally:
            await server.stop(0)

    return asyncio.run(scenario())


def test_grpcs_servers(authority: Authority, stranger: Authority, server: Pair, client: Pair) -> None:
    one_sided = server_credentials(server)
    mutual = server_credentials(server, client_ca=authority.ca)
    known = TLS(authority.ca, client.cert, client.key)
    other = stranger.issue("device.example")
    unknown = TLS(authority.ca, other.cert, other.key)
    assert why_with_grpc(one_sided, TLS(authority.ca)) is None
    assert why_with_grpc(one_sided, unknown) is None
    assert why_with_grpc(mutual, known) is None
    assert why_with_grpc(mutual, TLS(authority.ca)) == WANTED
    assert f"hangs up on the client certificate in {other.cert}" in (why_with_grpc(mutual, unknown) or "")
    for valid, words in (
        (PAST, "has expired; renew it"),
        (FUTURE, "isn't valid yet; set this machine's clock"),
    ):
        old = authority.issue("device.example", valid=valid)
        found = why_with_grpc(mutual, TLS(authority.ca, old.cert, old.key)) or ""
        assert found.startswith(f"the client certificate in {old.cert} {words}")
    assert "of no CA that is in" in (why_with_grpc(mutual, TLS(stranger.ca)) or "")
    assert "doesn't speak TLS" in (why_with_grpc(None, TLS(authority.ca)) or "")
    assert "this client plaintext" in (why_with_grpc(mutual, None) or "")
    assert why_with_grpc(None, None) is None
