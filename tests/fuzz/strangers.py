"""Peers that send what no peer should: to the gRPC ports, on raw TCP, and to the link's ZeroMQ socket.

Each is one connection, made from a ``random.Random``. What becomes of it is the server's business; what it
must not do is disturb anybody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Callable, Mapping

import zmq

from manager.link.uplink import LINK_VERSION
from protos import link_pb2, stream_pb2
from protos.chunks import varint
from tests.fuzz import corpus, http2
from tests.fuzz.wire import mangled, mutated

HEARD = 64 * 1024
"""Bytes of an answer that a stranger listens to."""

_APART = [corpus.apart(message) for message in corpus.PARTICIPANTS]
_UPWARD = [corpus.apart(message) for message, _ in corpus.UPWARD]

Script = Callable[[random.Random, str], list[bytes]]
"""What to send, piece by piece, to a gRPC server's method."""


def http1(_rng: random.Random, _path: str) -> list[bytes]:
    return [b"GET /index.html HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"]


def tls(_rng: random.Random, _path: str) -> list[bytes]:
    """A ClientHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return [outgoing.read()]


def noise(rng: random.Random, _path: str) -> list[bytes]:
    return [rng.randbytes(rng.randrange(1, 2000))]


def says_nothing(_rng: random.Random, _path: str) -> list[bytes]:
    return []


def preface_and_noise(rng: random.Random, _path: str) -> list[bytes]:
    return [http2.PREFACE, rng.randbytes(rng.randrange(1, 2000))]


def noisy_frames(rng: random.Random, path: str) -> list[bytes]:
    """Well-formed HTTP/2 frames that make no sense."""
    frames = [http2.hello(), http2.call(path)]
    for _ in range(rng.randrange(1, 30)):
        payload = rng.randbytes(rng.choice((0, 4, 5, 8, 16, 100)))
        size = rng.choice((None, None, None, 2**24 - 1))
        stream = rng.choice((0, 1, 3, 2**31 - 1))
        frames.append(
            http2.frame(rng.randrange(12), payload, stream=stream, flags=rng.randrange(256), size=size)
        )
    return frames


def noisy_messages(rng: random.Random, path: str) -> list[bytes]:
    """gRPC messages whose prefix or content is wrong."""
    pieces = [http2.hello(), http2.call(path)]
    for _ in range(rng.randrange(1, 6)):
        content = rng.randbytes(rng.randrange(60))
        size = rng.choice((None, None, 0, 7, 2**32 - 1))
        pieces.append(http2.data(http2.message(content, size=size, compressed=rng.choice((0, 0, 1, 200)))))
    return pieces


def changed_messages(rng: random.Random, path: str) -> list[bytes]:
    """Nearly valid messages, after a hello or without one."""
    pieces = [http2.hello(), http2.call(path)]
    if rng.random() < 0.5:
        pieces.append(http2.data(http2.message(b"")))
    for _ in range(rng.randrange(1, 8)):
        changed = mutated(rng, rng.choice(_APART), _APART)
        pieces.append(http2.data(http2.message(changed)))
    return pieces


def large_metadata(rng: random.Random, path: str) -> list[bytes]:
    value = "x" * rng.choice((20_000, 100_000, 1_000_000))
    return [http2.hello(), http2.call(path, x_large=value), http2.data(http2.message(b""))]


def large_message(_rng: random.Random, path: str) -> list[bytes]:
    """One of 5 MiB, of which some is sent."""
    begun = http2.message(bytes(60_000), size=5 * 2**20)
    return [http2.hello(), http2.call(path), http2.data(begun)]


def half_a_chunked_message(rng: random.Random, path: str) -> list[bytes]:
    """Then silence. It comes before any hello, or out of turn behind one."""
    chunk = stream_pb2.Chunk(total_size=2**30, data=bytes(4096))
    first = stream_pb2.ParticipantMessage(chunk=chunk).SerializeToString()
    hello = [http2.data(http2.message(b""))] if rng.random() < 0.5 else []
    return [http2.hello(), http2.call(path), *hello, http2.data(http2.message(first))]


def byte_by_byte(rng: random.Random, path: str) -> list[bytes]:
    """A DATA frame for each byte of a message."""
    content = http2.message(mangled(rng, corpus.RESULT.SerializeToString()))
    return [
        http2.hello(),
        http2.call(path),
        *(http2.data(content[at : at + 1]) for at in range(len(content))),
    ]


def begins_and_resets(rng: random.Random, path: str) -> list[bytes]:
    """Streams by the dozen, each reset at once."""
    streams = range(1, 2 * rng.randrange(2, 60), 2)
    reset = (8).to_bytes(4, "big")
    return [
        http2.hello(),
        *(
            http2.call(path, stream=stream) + http2.frame(http2.RST_STREAM, reset, stream=stream)
            for stream in streams
        ),
    ]


def pings(rng: random.Random, path: str) -> list[bytes]:
    many = http2.frame(http2.PING, bytes(8)) + http2.frame(http2.SETTINGS)
    return [http2.hello(), http2.call(path), many * rng.randrange(2, 300)]


def unknown_method(_rng: random.Random, path: str) -> list[bytes]:
    return [http2.hello(), http2.call(f"{path}s"), http2.data(http2.message(b""))]


STRANGERS: list[Script] = [
    *(http1, tls, noise, says_nothing, preface_and_noise, noisy_frames, noisy_messages, changed_messages),
    *(changed_messages, large_metadata, large_message, half_a_chunked_message, byte_by_byte),
    *(begins_and_resets, pings, unknown_method),
]


async def visit(address: str, pieces: list[bytes], patience: float) -> bytes:
    """Sends the pieces, listens for at most so many seconds, cuts the connection, returns what it heard."""
    host, _, port = address.rpartition(":")
    heard = bytearray()
    reader, writer = await asyncio.open_connection(host, int(port))
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(patience):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            while len(heard) < HEARD and (some := await reader.read(HEARD)):
                heard += some
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return bytes(heard)


async def visit_often(address: str, path: str, count: int, seed: int, *, at_once: int = 20) -> None:
    """So many strangers of all kinds, a few at a time."""
    rng = random.Random(seed)
    turns = asyncio.Semaphore(at_once)

    async def one(script: Script, own: random.Random) -> None:
        async with turns:
            with contextlib.suppress(OSError):
                await visit(address, script(own, path), patience=0.2)

    scripts = [STRANGERS[number % len(STRANGERS)] for number in range(count)]
    rng.shuffle(scripts)
    await asyncio.gather(*(one(script, random.Random(rng.random())) for script in scripts))


def hello_of(worker: int, incarnation: int = 1, *, version: int = LINK_VERSION, **fields: int) -> list[bytes]:
    """The Hello of a manager."""
    hello = link_pb2.Hello(version=version, worker=worker, incarnation=incarnation, handshake=1, **fields)  # type: ignore[arg-type] # numbers all
    return [link_pb2.Upward(hello=hello).SerializeToString()]


class LinkStranger:
    """A DEALER at the link's socket that is no manager."""

    def __init__(
        self,
        endpoint: str,
        identity: bytes = b"",
        options: Mapping[int, int | bytes] | None = None,
        watch: int = 0,
    ) -> None:
        """``options`` are ZeroMQ's, such as keys; ``watch`` are the events that ``monitor`` tells."""
        self._context = zmq.Context(io_threads=1)
        self.socket = self._context.socket(zmq.DEALER)
        for option, value in (options or {}).items():
            self.socket.setsockopt(option, value)
        if identity:
            self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.setsockopt(zmq.SNDTIMEO, 20_000)
        self.socket.setsockopt(zmq.RCVTIMEO, 20_000)
        if watch:  # now, for it may be refused at once, and only once
            self.monitor = self.socket.get_monitor_socket(watch)
        self.socket.connect(endpoint)

    def send(self, frames: list[bytes]) -> None:
        self.socket.send_multipart(frames)

    def answer(self) -> link_pb2.Downward:
        """The next message. Raises zmq.Again if none comes in 20 s."""
        return link_pb2.Downward.FromString(self.socket.recv_multipart()[0])

    def close(self, linger: int = 2_000) -> None:
        """What it has sent may still leave for so many milliseconds."""
        self.socket.close(linger)
        self._context.term()


def garbage(rng: random.Random) -> list[bytes]:
    """A message for the link that isn't a Hello which the coordinator could believe."""
    match rng.randrange(6):
        case 0:
            return [rng.randbytes(rng.randrange(200)) for _ in range(rng.randrange(1, 5))]
        case 1:
            return [b"", b"", b""]
        case 2:
            return [b"\x2a" + varint(rng.randrange(2**40)), bytes(rng.randrange(300_000))]
        case 3:
            return hello_of(rng.choice((5, 2**32 - 1)))
        case 4:
            return hello_of(0, rng.choice((0, 1_000)), version=rng.choice((0, LINK_VERSION, 2**32 - 1)))
        case _:
            at = rng.randrange(1, len(_UPWARD))  # none of a Hello
            return [mutated(rng, _UPWARD[at], _UPWARD[1:]), *corpus.UPWARD[at][1]]


def send_garbage(endpoint: str, count: int, seed: int) -> None:
    """So many messages from a few strangers at the link's socket."""
    rng = random.Random(seed)
    strangers = [
        LinkStranger(endpoint),
        LinkStranger(endpoint, b"\xff" * 200),
        LinkStranger(endpoint, b"0.1"),
    ]
    try:
        for _ in range(count):
            rng.choice(strangers).send(garbage(rng))
    finally:
        for stranger in strangers:
            stranger.close()
