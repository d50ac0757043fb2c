"""Stands between the load generator, which speaks no TLS, and a server: a connection for a connection.

Decides only how each connection goes on: as it is (for comparison), by TLS, or by TLS with a client
certificate of its own. What it costs is no part of any figure about the server.

    python -m benchmarks.front --to 127.0.0.1:50051 --ca certs/ca.pem --certificates certs/participants

Prints a JSON line when it listens.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import uvloop

from benchmarks.meter import say_listening


class Pipe(asyncio.Protocol):
    """One end of a connection; what comes goes to the other end, no faster than that takes it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: Pipe | None = None
        self._waiting: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        for data in self._waiting:
            self.transport.write(data)
        self._waiting.clear()

    def send(self, data: bytes) -> None:
        if self.transport is None:
            self._waiting.append(data)  # the handshake isn't over yet
        else:
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        assert self.other is not None  # noqa: S101
        self.other.send(data)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


def contexts(ca: Path, certificates: Path | None) -> Iterator[ssl.SSLContext]:
    """One for each connection."""
    made = []
    for certificate in sorted(certificates.glob("*.pem")) if certificates is not None else [None]:
        context = ssl.create_default_context(cafile=ca)
        context.set_alpn_protocols(["h2"])
        if certificate is not None:
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        made.append(context)
    return itertools.cycle(made)


async def serve(args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    host, _, port = args.to.rpartition(":")
    each = contexts(args.ca, args.certificates) if args.ca is not None else itertools.repeat(None)
    connecting: set[asyncio.Task[None]] = set()

    async def connect(near: Pipe, far: Pipe) -> None:
        try:
            await loop.create_connection(lambda: far, host, int(port), ssl=next(each))
        except OSError:
            if near.transport is not None:
                near.transport.abort()

    def accept() -> Pipe:
        near, far = Pipe(), Pipe()
        near.other, far.other = far, near
        task = loop.create_task(connect(near, far))
        connecting.add(task)
        task.add_done_callback(connecting.discard)
        return near

    server = await loop.create_server(accept, "127.0.0.1", 0, backlog=4096)
    say_listening("127.0.0.1:%d" % server.sockets[0].getsockname()[1])  # noqa: UP031 - shorter
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--to", required=True, metavar="HOST:PORT", help="the server")
    parser.add_argument("--ca", type=Path, help="speak TLS, and trust this authority")
    parser.add_argument(
        "--certificates", type=Path, help="a directory of PEM files, one per connection in turn"
    )
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
