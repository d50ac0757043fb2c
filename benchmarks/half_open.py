"""A TCP proxy whose connections can be frozen: nothing passes any more, and neither end is told.

That is what a cut cable, a forgetful NAT or a closed laptop lid looks like. Decides nothing but that.
Connections made after a freeze pass, as they would through a NAT that has forgotten the old ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Self

START_LIMIT = 10


class FreezingProxy:
    """Forwards to ``target`` (host:port) from ``address``. A context manager, with a thread of its own."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._ready = threading.Event()
        self._frozen = asyncio.Event()  # of the connections that there are now
        self.address = ""

    def freeze(self) -> None:
        """From now on nothing passes through the connections that there are."""
        self._loop.call_soon_threadsafe(self._freeze)

    def _freeze(self) -> None:
        self._frozen.set()
        self._frozen = asyncio.Event()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, backlog=1024)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._over.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connection(reader, writer, self._frozen))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frozen: asyncio.Event
    ) -> None:
        writers = [writer]
        try:
            there, thither = await asyncio.open_connection(*self._target)
            writers.append(thither)
            pumps = [asyncio.create_task(_pump(*way, frozen)) for way in ((reader, thither), (there, writer))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                if frozen.is_set():  # whatever one end says now, the other doesn't hear it
                    await self._over.wait()
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass
        finally:
            for each in writers:
                each.transport.abort()

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(START_LIMIT):
            raise RuntimeError("the proxy didn't start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(START_LIMIT)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frozen: asyncio.Event) -> None:
    while data := await reader.read(65536):
        if frozen.is_set():
            return
        writer.write(data)
        await writer.drain()
