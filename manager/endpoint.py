"""The gRPC server that participants connect to: its options, and how it starts and drains.

Decides gRPC's settings; each has its reason beside it. What is said on the streams is servicer.py's business.
"""

from __future__ import annotations

import asyncio

import grpc.aio

from manager.limits import Limits
from manager.listen import Address
from manager.servicer import Servicer
from protos.chunks import MAX_FRAME_SIZE

MIN_PING_INTERVAL = 5.0
"""Seconds between two pings of a participant that is just bearable. It is told to ping every 10 s, whatever
the server does; clocks and timers differ."""

_OPTIONS = {
    # A storm of connections must not make gRPC drop streams: over its defaults (1,000 and 3,000 pending
    # requests) it ends them with CANCELLED.
    "grpc.server.max_pending_requests": 1_000_000,
    "grpc.server.max_pending_requests_hard_limit": 1_000_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.max_pings_without_data": 0,
    "grpc.http2.min_ping_interval_without_data_ms": int(MIN_PING_INTERVAL * 1000),
    # Connections on which nothing is said take files, too: without HTTP/2's handshake, or without a stream.
    "grpc.server_handshake_timeout_ms": 20_000,
    "grpc.max_connection_idle_ms": 60_000,
    "grpc.max_receive_message_length": MAX_FRAME_SIZE,
    # What a participant may send ahead while nobody reads: enough to keep a chunk coming over a long line. By
    # default gRPC lets it grow with the bandwidth, to megabytes for each of a thousand participants.
    "grpc.http2.bdp_probe": 0,
    "grpc.http2.lookahead_bytes": 128 * 1024,
}


def server_options(limits: Limits) -> dict[str, int]:
    """gRPC's settings. Who is gone without a FIN is found in 1.5 times ``limits.keepalive``."""
    time = round(limits.keepalive * 1000)
    return {
        **_OPTIONS,
        "grpc.keepalive_time_ms": time,
        "grpc.keepalive_timeout_ms": time // 2,
        "grpc.http2.ping_timeout_ms": time // 2,  # without it the other two find nobody in a minute
    }


CLOSE_TIMEOUT = 1.0
"""Seconds that participants who have been told to reconnect get to close their streams."""


class Endpoint:
    """Serves one servicer at one address."""

    def __init__(self, servicer: Servicer, limits: Limits) -> None:
        self._servicer = servicer
        self._limits = limits
        self._hurry = asyncio.Event()

    async def start(self, address: Address, *, share_port: bool) -> Address:
        """Begins to serve; returns the address with its port. Raises OSError if it can't be bound."""
        options = [*server_options(self._limits).items(), ("grpc.so_reuseport", int(share_port))]
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((self._servicer.handler(),))
        try:
            port = self._server.add_insecure_port(str(address))
        except RuntimeError as error:
            raise OSError(f"can't listen on {address}") from error
        await self._server.start()
        return Address(address.host, port)

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
        await self._server.stop(CLOSE_TIMEOUT)
        await stopping

    def hasten(self, grace: float) -> None:
        """Gives a drain that is under way ``grace`` seconds from now at most."""
        asyncio.get_running_loop().call_later(grace, self._hurry.set)
