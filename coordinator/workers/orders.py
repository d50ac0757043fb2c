"""What the coordinator has to tell one worker, gathered until the end of the event loop's turn.

The counterpart of manager/link/reports.py. An instruction that goes to many participants of a worker is
packed once.
"""

from __future__ import annotations

from collections.abc import Sequence

from manager.core.call import Send
from manager.payloads.blobs import Payload
from protos import link_pb2


class OrdersBatch:
    """One batch in the making."""

    __slots__ = (
        "_cancel_sessions",
        "_cancel_tags",
        "_closes",
        "_ends",
        "_indices",
        "_orders",
        "_payloads",
        "_sessions",
        "_tags",
    )

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._payloads: list[Payload] = []
        self._sessions: list[int] = []
        self._tags: list[int] = []
        self._indices: list[int] = []
        self._orders = link_pb2.Orders()
        self._cancel_sessions: list[int] = []
        self._cancel_tags: list[int] = []
        self._closes: list[int] = []
        self._ends: list[int] = []

    def __bool__(self) -> bool:
        return bool(
            self._sessions
            or self._orders.broadcasts
            or self._cancel_sessions
            or self._closes
            or self._ends
            or self._orders.moves
        )

    def instruct(self, session: int, tag: int, payload: Payload) -> None:
        """Adds an instruction to one session."""
        self._sessions.append(session)
        self._tags.append(tag)
        self._indices.append(self._index(payload))

    def broadcast(self, send: Send, sessions: link_pb2.Broadcast) -> None:
        """Adds an instruction to many. ``sessions`` has only the sessions filled in: those of this worker."""
        broadcast = self._orders.broadcasts.add()
        broadcast.CopyFrom(sessions)
        broadcast.tag = send.tag
        broadcast.payload = self._index(send.payload)
        broadcast.hurry = send.hurry
        if send.call is not None and send.call.reduction is not None:
            broadcast.batch = send.call.id
            broadcast.reduction.CopyFrom(send.call.reduction.message())

    def _index(self, payload: Payload) -> int:
        payloads = self._payloads
        if not payloads or payloads[-1] is not payload:
            payloads.append(payload)
        return len(payloads) - 1

    def cancel(self, session: int, tag: int) -> None:
        self._cancel_sessions.append(session)
        self._cancel_tags.append(tag)

    def close(self, batch: int) -> None:
        """Adds the wish for a batch's last partial."""
        self._closes.append(batch)

    def end(self, session: int) -> None:
        """Adds the end of a session's stream."""
        self._ends.append(session)

    def move(self, sessions: Sequence[int], low: float, high: float, address: str = "") -> None:
        """Adds the wish that these participants reconnect, each after ``low`` to ``high`` seconds."""
        self._orders.moves.add(sessions=sessions, min_seconds=low, max_seconds=high, address=address)

    def take(self) -> tuple[link_pb2.Orders, list[Payload]]:
        """The batch and its payloads; begins a new one."""
        orders = self._orders
        if self._sessions:
            orders.instruct_sessions.extend(self._sessions)
            orders.instruct_tags.extend(self._tags)
            orders.instruct_payloads.extend(self._indices)
        if self._cancel_sessions:
            orders.cancel_sessions.extend(self._cancel_sessions)
            orders.cancel_tags.extend(self._cancel_tags)
        if self._closes:
            orders.close_batches.extend(self._closes)
        if self._ends:
            orders.end_sessions.extend(self._ends)
        payloads = self._payloads
        self.clear()
        return orders, payloads
