"""Batches for the control stream: everything of one turn in one message, within a size.

Both ends use it: the client gathers ClientBatch, the coordinator ServerBatch.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from protos import control_pb2

B = TypeVar("B", control_pb2.ClientBatch, control_pb2.ServerBatch)

log = logging.getLogger("muster.control")

MAX_ITEM_BYTES = 2**31 - 2**20
"""The largest item that a control message can carry, with room for what goes around it."""

MAX_BACKLOG_BYTES = 4 * 1024**3
"""What may wait to be written. An end that lets more pile up isn't read from."""

ITEM_BYTES = 64
"""What an item is reckoned to take besides its size."""

MAX_BATCH_BYTES = 4 * 1024 * 1024
"""What a batch holds at most, unless it is a single item that is larger."""


class BatchWriter(Generic[B]):
    """Gathers items and writes them in order, in as few messages as it can."""

    def __init__(
        self, make: type[B], write: Callable[[B], Awaitable[Any]], on_error: Callable[[], object]
    ) -> None:
        """``on_error`` must end the stream: what follows a batch that could not be written is worthless."""
        self._on_error = on_error
        self._make: type[B] = make
        self._write: Callable[[B], Awaitable[Any]] = write
        self._items: deque[tuple[str, Any, int]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._backlog = 0

    def add(self, field: str, item: Any, size: int = 0) -> None:
        """Adds an item (a message or a number) to the repeated ``field``; ``size`` in bytes if it's large.

        Without a field it is a batch of its own, whose contents are added.
        """
        if self._closed:
            return
        self._items.append((field, item, size))
        self._backlog += ITEM_BYTES + size
        if self._backlog > MAX_BACKLOG_BYTES:
            log.error("the other end of a control stream doesn't read; the stream is ended")
            self.close()
            self._on_error()
            return
        if self._task is None:
            self._task = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        try:
            while self._items:
                batch = self._make()
                size = 0
                while self._items and (not size or size + self._items[0][2] <= MAX_BATCH_BYTES):
                    field, item, item_size = self._items.popleft()
                    getattr(batch, field).append(item) if field else batch.MergeFrom(item)
                    size += item_size
                    self._backlog -= ITEM_BYTES + item_size
                await self._write(batch)
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            self.close()  # the stream has ended; whoever reads it knows why
        except Exception:
            log.exception("a batch could not be written to the control stream, which is ended")
            self.close()
            self._on_error()
        finally:
            self._task = None

    def close(self) -> None:
        self._closed = True
        self._items.clear()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
