"""The gRPC server that participants connect to: its options, and how it starts and drains.

Decides gRPC's settings; each has its reason beside it. What is said on the streams is servicer.py's business.
"""

from __future__ import annotations

import asyncio
from os import fspath

import grpc.aio

from manager.access.certificates import Certificates
from manager.access.security import Security
from manager.access.watched import keep_looking, troubles
from manager.errors import StartError
from manager.limits import Limits
from manager.listen import Address, addresses_of
from manager.logs import keep_headers_out
from manager.serving.closing import Closing
from manager.serving.connections import Connections
from manager.serving.gate import Gate
from manager.serving.open_sockets import AVAILABLE, OpenSockets
from manager.serving.servicer import Servicer
from manager.timeouts import CLOSE_TIMEOUT
from protos.chunks import MAX_FRAME_SIZE
from protos.forks import check_process

MIN_PING_INTERVAL = 5.0
"""Seconds between two pings of a participant that is just bearable. It is told to ping every 10 s, whatever
the server does; clocks and timers differ."""

MOST_PENDING = 10_000
"""Streams that have been opened and not been looked at yet. Each is about 10 KB, whoever has opened it, and
one connection can open any number; over this gRPC ends them with CANCELLED, and participants come back. Its
own limits (1,000 and 3,000) are too low for a storm of participants that have lost another server."""

_OPTIONS = {
    "grpc.server.max_pending_requests": MOST_PENDING,
    "grpc.server.max_pending_requests_hard_limit": MOST_PENDING,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.max_pings_without_data": 0,
    "grpc.http2.min_ping_interval_without_data_ms": int(MIN_PING_INTERVAL * 1000),
    "grpc.max_receive_message_length": MAX_FRAME_SIZE,
    # Little can decompress to very much, and older versions of gRPC look at the size only afterwards. Without
    # this, compressed messages arrive as they are, and are refused like any other that can't be read.
    "grpc.per_message_decompression": 0,
    # What a participant may send ahead while nobody reads: enough to keep a chunk coming over a long line. By
    # default gRPC lets it grow with the bandwidth, to megabytes for each of a thousand participants.
    "grpc.http2.bdp_probe": 0,
    "grpc.http2.lookahead_bytes": 128 * 1024,
}


def server_options(limits: Limits) -> dict[str, int]:
    """gRPC's settings. Who is gone without a FIN is found in 1.5 times ``limits.keepalive``."""
    time = round(limits.keepalive * 1000)
    # Connections without a stream; where they can be seen, connections.py closes them.
    idle = {} if AVAILABLE else {"grpc.max_connection_idle_ms": round(limits.idle_timeout * 1000)}
    return {
        **_OPTIONS,
        **idle,
        "grpc.keepalive_time_ms": time,
        "grpc.keepalive_timeout_ms": time // 2,
        "grpc.http2.ping_timeout_ms": time // 2,  # without it the other two find nobody in a minute
        "grpc.server_handshake_timeout_ms": round(limits.handshake_timeout * 1000),
        # Headers of a call. What gRPC refuses it tells nobody, so there is room for servicer.py to do it.
        "grpc.max_metadata_size": 2 * limits.max_metadata,
        "grpc.absolute_max_metadata_size": 2 * limits.max_metadata,
    }


class Endpoint:
    """Serves one servicer at one address."""

    def __init__(self, servicer: Servicer, limits: Limits, security: Security) -> None:
        self._servicer = servicer
        self._limits = limits
        self._security = security
        self._certificates: Certificates | None = None
        self._gate: Gate | None = None
        self._closing: Closing | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._hurry = asyncio.Event()

    async def start(self, address: Address, *, share_port: bool) -> Address:
        """Begins to serve; returns the address with its port.

        Raises StartError if the address can't be bound, or files of certificates or tokens can't be used.
        """
        check_process()
        try:
            self._security.check(address)
            self._secure(self._security)
        except ValueError as error:
            raise StartError(str(error)) from None
        keep_headers_out()
        self._server = grpc.aio.server(
            interceptors=[] if self._gate is None else [self._gate],
            options=[
                *server_options(self._limits).items(),
                ("grpc.so_reuseport", int(share_port)),
                # More are closed as they come. Without files it couldn't even see that a token is revoked.
                ("grpc.max_allowed_incoming_connections", self._servicer.connections),
            ],
        )
        self._server.add_generic_rpc_handlers((self._servicer.handler(),))
        try:
            if self._certificates is None:
                port = self._server.add_insecure_port(str(address))
            else:
                port = self._server.add_secure_port(str(address), self._certificates.credentials())
        except RuntimeError as error:
            text = f"can't listen on {address}"
            if self._certificates is not None:
                text += ", or gRPC can't use the key: it must be RSA, or ECDSA on the curve P-256 or P-384"
            raise StartError(text) from error
        await self._server.start()
        connections = Connections(self._limits, self._servicer.connections, self._servicer.refused)
        sockets = OpenSockets(port, await asyncio.to_thread(addresses_of, address))
        self._closing = Closing(connections, sockets, self._servicer.crowds.at)
        self._tasks.append(asyncio.create_task(self._closing.run()))
        if self._certificates is not None or self._gate is not None:
            self._tasks.append(asyncio.create_task(keep_looking(self._look)))
        return Address(address.host, port)

    def _secure(self, security: Security) -> None:
        if security.tls is not None:
            self._certificates = Certificates(*security.tls)
        tokens, by_certificate = security.tokens, security.tls_client_ca is not None
        if tokens is not None or by_certificate:
            file = None if tokens is None else fspath(tokens)
            self._gate = Gate(self._servicer, file, certificates=by_certificate)

    @property
    def troubles(self) -> list[str]:
        """What is wrong with files of certificates and tokens, or with connections, a sentence each."""
        return troubles(self._certificates, self._gate, self._closing)

    async def _look(self) -> None:
        """Takes over what has changed in the files. In a thread: a disk may be slow."""
        if self._certificates is not None:
            await asyncio.to_thread(self._certificates.look)
        if self._gate is not None and await asyncio.to_thread(self._gate.look):
            self._gate.clear_out()

    async def drain(self, grace: float) -> None:
        """Takes no new streams, sends participants elsewhere, and ends.

        Those at work get ``grace`` seconds to answer first.
        """
        stopping = asyncio.ensure_future(self._server.stop(grace + CLOSE_TIMEOUT))  # refuses new ones at once
        self._servicer.drain()
        ends = [asyncio.ensure_future(event.wait()) for event in (self._servicer.drained, self._hurry)]
        await asyncio.wait([stopping, *ends], timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        self._servicer.part()
        for end in ends:
            end.cancel()
        # One at a time: of two that come to their end together, one may destroy what the other still
        # works on (a segmentation fault in grpcio 1.85).
        stopping.cancel()
        await asyncio.wait([stopping])
        if not stopping.cancelled():
            stopping.result()
        await self._server.stop(CLOSE_TIMEOUT)
        for task in self._tasks:
            task.cancel()

    def hasten(self, grace: float) -> None:
        """Gives a drain that is under way ``grace`` seconds from now at most."""
        asyncio.get_running_loop().call_later(grace, self._hurry.set)
