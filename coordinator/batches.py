"""Batches for the control stream: everything of one turn in one message, within a size.

Both ends use it: the client gathers ClientBatch, the coordinator ServerBatch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from protos import control_pb2

B = TypeVar("B", control_pb2.ClientBatch, control_pb2.ServerBatch)

MAX_BATCH_BYTES = 4 * 1024 * 1024
"""A batch is sent once it holds so much. One item may be larger: the control channel has no limit."""


class BatchWriter(Generic[B]):
    """Gathers items and writes them in order, in as few messages as it can."""

    def __init__(self, make: type[B], write: Callable[[B], Awaitable[Any]]) -> None:
        self._make: type[B] = make
        self._write: Callable[[B], Awaitable[Any]] = write
        self._items: deque[tuple[str, Any, int]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def add(self, field: str, item: Any, size: int = 0) -> None:
        """Adds an item (a message or a number) to the repeated ``field``; ``size`` in bytes if it's large."""
        if self._closed:
            return
        self._items.append((field, item, size))
        if self._task is None:
            self._task = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        try:
            while self._items:
                batch = self._make()
                size = 0
                while self._items and size < MAX_BATCH_BYTES:
                    field, item, item_size = self._items.popleft()
                    getattr(batch, field).append(item)
                    size += item_size
                await self._write(batch)
        except asyncio.CancelledError:
            raise
        except Exception:  # the stream has ended; whoever reads it knows why
            self.close()
        finally:
            self._task = None

    def close(self) -> None:
        self._closed = True
        self._items.clear()
        if self._task is not None:
            self._task.cancel()
