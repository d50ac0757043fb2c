"""The proxy of the chaos run: what it passes on, cuts and freezes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.chaos.proxy import FaultProxy
from tests.support import PATIENCE

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Between:
    """A connection through the proxy, and what it is on the other side."""

    def __init__(self, proxy: FaultProxy, near: Streams, far: Streams) -> None:
        self.proxy = proxy
        self.near, self.near_writer = near
        self.far, self.far_writer = far


def through_the_proxy(test: Callable[[Between], Awaitable[None]]) -> None:
    async def run() -> None:
        accepted: asyncio.Queue[Streams] = asyncio.Queue()
        server = await asyncio.start_server(lambda *streams: accepted.put_nowait(streams), "127.0.0.1", 0)
        proxy = FaultProxy(server.sockets[0].getsockname())
        host, _, port = (await proxy.start()).rpartition(":")
        near = await asyncio.open_connection(host, int(port))
        far = await accepted.get()
        try:
            await test(Between(proxy, near, far))
        finally:
            for _, writer in (near, far):
                writer.close()
            await proxy.stop()
            server.close()
            await server.wait_closed()

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


def test_it_passes_on_bytes_and_ends_in_both_directions() -> None:
    async def test(between: Between) -> None:
        between.near_writer.write(b"there" * 100_000)
        assert await between.far.readexactly(500_000) == b"there" * 100_000
        between.far_writer.write(b"back")
        between.far_writer.write_eof()
        assert await between.near.read() == b"back"
        between.near_writer.write(b"the other direction goes on")
        between.near_writer.write_eof()
        assert await between.far.read() == b"the other direction goes on"
        while between.proxy.pipes:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)

    through_the_proxy(test)


def test_it_knows_connections_by_the_address_that_the_far_side_sees() -> None:
    async def test(between: Between) -> None:
        host, port = between.far_writer.get_extra_info("peername")
        assert [pipe.peer for pipe in between.proxy.open()] == [f"ipv4:{host}:{port}"]

    through_the_proxy(test)


@pytest.mark.parametrize("reset", [True, False])
def test_a_cut_is_an_end_on_both_sides(reset: bool) -> None:
    async def test(between: Between) -> None:
        between.proxy.cut(between.proxy.open(), reset=reset)
        for reader in (between.near, between.far):
            if reset:
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            else:
                assert await reader.read() == b""
        assert not between.proxy.open()

    through_the_proxy(test)


def test_through_a_frozen_connection_nothing_gets_until_it_is_thawed() -> None:
    async def test(between: Between) -> None:
        (pipe,) = between.proxy.open()
        pipe.freeze()
        between.near_writer.write(b"kept")
        between.near_writer.close()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(between.far.read(1), 0.1)
        assert not between.proxy.open(), "it is not one that all gets through"
        pipe.thaw()
        assert await between.far.read() == b"kept"

    through_the_proxy(test)


def test_where_nobody_listens_a_connection_is_reset() -> None:
    async def run() -> None:
        proxy = FaultProxy(("127.0.0.1", 1))
        host, _, port = (await proxy.start()).rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        await proxy.stop()
        assert not proxy.pipes

    asyncio.run(asyncio.wait_for(run(), PATIENCE))
