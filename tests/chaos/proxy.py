"""A TCP proxy between participants and workers that can cut connections, or freeze them.

A frozen connection is half-open: both ends believe in it, and nothing gets through. What one end does
meanwhile, even closing it, the other learns only when it is thawed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterable
from typing import cast

_LINGER_NOT = struct.pack("ii", 1, 0)


class Pipe:
    """One connection: from a participant to a worker."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self.down = _Side(self)
        self.up = _Side(self)
        self.down.other, self.up.other = self.up, self.down
        self.frozen = False
        self._lost: list[tuple[_Side, bool]] = []

    @property
    def peer(self) -> str:
        """The address that the worker sees, as ``coordinator participants`` shows it."""
        name = self.up.transport.get_extra_info("sockname") if self.up.transport is not None else None
        return f"ipv4:{name[0]}:{name[1]}" if name else ""

    def __repr__(self) -> str:
        return f"<{self.peer}: from the participant {self.down!r}, from the worker {self.up!r}>"

    def freeze(self) -> None:
        self.frozen = True
        for side in (self.down, self.up):
            side.pause("frozen")

    def thaw(self) -> None:
        self.frozen = False
        for side in (self.down, self.up):
            side.resume("frozen")
        for side, broken in self._lost:
            side.other.end(reset=broken)

    def cut(self, *, reset: bool) -> None:
        for side in (self.down, self.up):
            side.end(reset=reset)

    def lost(self, side: _Side, *, broken: bool) -> None:
        if self.frozen:
            self._lost.append((side, broken))
        else:
            side.other.end(reset=broken)
        if self.down.over and self.up.over:
            self._proxy.pipes.discard(self)


class _Side(asyncio.Protocol):
    other: _Side

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self.transport: asyncio.Transport | None = None
        self._paused_for: set[str] = set()
        self._ended = False  # nothing more comes from here
        self.over = False

    def __repr__(self) -> str:
        state = "over" if self.over else "ended" if self._ended else "open"
        return " ".join([state, *sorted(self._paused_for)])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self._paused_for:
            self.transport.pause_reading()
        if self.other.over:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.other.transport is not None and not self.other.over:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        self._ended = True
        if self.other._ended:
            self.other.end(reset=False)
            return False  # nothing more can come in either direction
        if self.other.transport is not None and self.other.transport.can_write_eof():
            with contextlib.suppress(OSError, RuntimeError):
                self.other.transport.write_eof()
        return True  # the other direction may go on

    def pause_writing(self) -> None:
        self.other.pause("full")

    def resume_writing(self) -> None:
        self.other.resume("full")

    def connection_lost(self, error: Exception | None) -> None:
        self.over = True
        self._pipe.lost(self, broken=error is not None)

    def pause(self, reason: str) -> None:
        if not self._paused_for and self.transport is not None and not self.over:
            self.transport.pause_reading()
        self._paused_for.add(reason)

    def resume(self, reason: str) -> None:
        self._paused_for.discard(reason)
        if not self._paused_for and self.transport is not None and not self.over:
            self.transport.resume_reading()

    def end(self, *, reset: bool) -> None:
        if self.transport is None or self.over:
            return
        if not reset:
            self.transport.close()
            return
        raw = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self.transport.abort()


class FaultProxy:
    """Listens on a port of its own and passes everything on to ``target``."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self.pipes: set[Pipe] = set()
        self._connecting: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Returns ``host:port``."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def stop(self) -> None:
        self._server.close()
        for task in self._connecting:
            task.cancel()
        self.cut(self.pipes, reset=True)
        await self._server.wait_closed()

    def open(self) -> list[Pipe]:
        """Connections that go all the way and aren't frozen, in the order of their ports."""
        pipes = [pipe for pipe in self.pipes if not pipe.frozen and pipe.peer and not pipe.up.over]
        return sorted(pipes, key=lambda pipe: pipe.peer)

    def cut(self, pipes: Iterable[Pipe], *, reset: bool) -> None:
        for pipe in list(pipes):
            pipe.cut(reset=reset)

    def _accept(self) -> asyncio.Protocol:
        pipe = Pipe(self)
        pipe.down.pause("unconnected")
        self.pipes.add(pipe)
        task = asyncio.ensure_future(self._connect(pipe))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return pipe.down

    async def _connect(self, pipe: Pipe) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: pipe.up, *self._target)
        except OSError:  # nobody listens: tell the participant in the same way
            pipe.up.over = True
            pipe.down.end(reset=True)
            if pipe.down.over:
                self.pipes.discard(pipe)
            return
        pipe.down.resume("unconnected")
        if pipe.down.over:
            pipe.up.end(reset=True)
