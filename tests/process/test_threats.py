"""People on the way, people in the place of the server, and people with somebody else's token."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coordinator import connect
from participant_sdk import TLS, ConnectionLost, Participant, client
from participant_sdk.participant import run_all
from protos import stream_pb2
from tests.authority import PAST, Authority, Tokens
from tests.process.running import start_coordinator
from tests.process.test_security import credentials, echoes, ended, hello
from tests.support import PATIENCE, Devices, eventually, instruction


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    made = Tokens(tmp_path)
    made.issue("a", "b")
    return made


class Eavesdropper:
    """Passes on what goes between clients and a server, and keeps a copy."""

    def __init__(self, target: str) -> None:
        self.heard = b""
        self._target = target
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._pipes: set[asyncio.Task[None]] = set()
        self._ends: list[asyncio.StreamWriter] = []

    @contextmanager
    def listening(self) -> Iterator[str]:
        """The address to connect to instead."""
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        try:
            yield f"127.0.0.1:{self._port}"
        finally:
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(PATIENCE)

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        for end in self._ends:
            end.transport.abort()
        await asyncio.gather(*self._pipes)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._target.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self._ends += [writer, far_writer]
        for pipe in (self._copy(reader, far_writer), self._copy(far_reader, writer)):
            self._pipes.add(asyncio.create_task(pipe))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                self.heard += data
                writer.write(data)
        writer.close()


@pytest.mark.parametrize("encrypted", [True, False], ids=["TLS", "plaintext"])
def test_who_listens_on_the_way_hears_neither_models_nor_tokens(
    tmp_path: Path, devices: Devices, authority: Authority, tokens: Tokens, encrypted: bool
) -> None:
    """In plaintext all of it, so this would notice."""
    secret = b"the weights of the model " * 10
    options = [tokens.option, *(authority.server().options if encrypted else ())]
    with start_coordinator(tmp_path / "log", "--workers=1", *options) as coordinator:
        eavesdropper = Eavesdropper(coordinator.listen)
        with eavesdropper.listening() as address:
            tls = credentials(authority) if encrypted else None
            devices.one(address, hello("a"), tls, tokens.issued["a"])
            with connect(coordinator.control) as connection:
                outcome = connection.get_participants(1, timeout=PATIENCE).run(
                    instruction("echo", secret), timeout=PATIENCE
                )
            assert [answer.result.payload for answer in outcome.results.values()] == [secret]
            for text in (secret, tokens.issued["a"].encode()):
                assert (text in eavesdropper.heard) is not encrypted
            assert len(eavesdropper.heard) > 2 * len(secret)


class Impostor:
    """Listens in the place of a server, with this TLS or none, and keeps what it is told."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.told = b""
        self.connections = 0
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"localhost:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> Impostor:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._socket.accept()
                self.connections += 1
                plain.settimeout(1.0)
                with contextlib.suppress(OSError), self._secured(plain) as connection:
                    while data := connection.recv(65536):
                        self.told += data

    def _secured(self, plain: socket.socket) -> socket.socket:
        if self._context is None:
            plain.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # HTTP/2, without TLS
            return plain
        with plain:
            return self._context.wrap_socket(plain, server_side=True)


def take_part(connection: client.Connection) -> None:
    with connection as (consume, dispatch):
        dispatch(stream_pb2.ParticipantMessage())
        consume()


@pytest.mark.parametrize("kind", ["another authority", "another name", "expired", "no TLS"])
def test_who_poses_as_the_server_is_told_nothing(
    tmp_path: Path, authority: Authority, tokens: Tokens, kind: str
) -> None:
    pair = {
        "another authority": lambda: Authority(tmp_path, "other").server(),
        "another name": lambda: authority.issue("somewhere.example.org"),
        "expired": lambda: authority.server(**PAST),
    }
    context = None
    if kind in pair:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*pair[kind]())
        context.set_alpn_protocols(["h2"])
    token = tokens.issued["a"]
    with Impostor(context) as impostor:
        made = client.connection(impostor.address, tls=TLS(ca=authority.file), token=token)
        with pytest.raises(ConnectionLost) as caught:
            take_part(made)
        assert impostor.connections
    assert token.encode() not in impostor.told
    assert b"PRI" not in impostor.told, "it was told that somebody wants to speak HTTP/2"
    assert token not in str(caught.value)
    assert {
        "another authority": "of no CA that is in",
        "another name": "somewhere.example.org",
        "expired": "expired",
        "no TLS": "TLS",
    }[kind] in str(caught.value)


def test_a_stolen_token_is_worth_one_participants_place_until_it_is_revoked(
    tmp_path: Path, devices: Devices, authority: Authority, tokens: Tokens
) -> None:
    with start_coordinator(
        tmp_path / "log", "--workers=2", tokens.option, *authority.server().options
    ) as coordinator:
        tls = credentials(authority)
        robbed = devices.one(coordinator.listen, hello(), tls, tokens.issued["a"])
        other = devices.one(coordinator.listen, hello(), tls, tokens.issued["b"])
        assert echoes(coordinator, 2) == ["a", "b"]
        for name in ("b", "c"):  # nobody else's, whether there is one or not
            claim = devices.one(coordinator.listen, hello(name), tls, tokens.issued["a"])
            assert ended(claim)[0] == "PERMISSION_DENIED"
        assert (robbed.ended, other.ended) == (None, None)
        thief = devices.one(coordinator.listen, hello(), tls, tokens.issued["a"])
        assert ended(robbed)[0] == "ALREADY_EXISTS", "whose token it is notices"
        eventually(lambda: "participant a connected again" in coordinator.output)
        tokens.revoke("a")
        assert ended(thief)[0] == "UNAUTHENTICATED"
        eventually(lambda: coordinator.status()["participants"] == 1)
        assert echoes(coordinator, 1) == ["b"]
        assert other.ended is None


def test_a_participant_whose_token_is_stolen_says_so_and_ends(
    tmp_path: Path, devices: Devices, tokens: Tokens
) -> None:
    """It doesn't fight with the thief for the place, which would go on for ever."""
    with start_coordinator(tmp_path / "log", "--workers=1", tokens.option) as coordinator:
        errors: list[BaseException | None] = []
        participant = Participant(token=tokens.issued["a"])
        thread = threading.Thread(target=lambda: errors.extend(run_all([participant], coordinator.listen)))
        thread.start()
        eventually(lambda: coordinator.status()["participants"] == 1)
        devices.one(coordinator.listen, hello(), token=tokens.issued["a"])
        thread.join(PATIENCE)
        assert "a newer connection with the same participant id" in str(errors[0])
