"""What the coordinator has to tell one worker, gathered until the end of the event loop's turn.

The counterpart of manager/reports.py. An instruction that goes to many participants of a worker is packed
once.
"""

from __future__ import annotations

from protos import link_pb2
from protos.frames import Buffer, pack


class OrdersBatch:
    """One batch in the making."""

    __slots__ = ("_cancel_sessions", "_cancel_tags", "_ends", "_indices", "_payloads", "_sessions", "_tags")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._payloads: list[bytes] = []
        self._sessions: list[int] = []
        self._tags: list[int] = []
        self._indices: list[int] = []
        self._cancel_sessions: list[int] = []
        self._cancel_tags: list[int] = []
        self._ends: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._sessions or self._cancel_sessions or self._ends)

    def instruct(self, session: int, tag: int, payload: bytes) -> None:
        payloads = self._payloads
        if not payloads or payloads[-1] is not payload:
            payloads.append(payload)
        self._sessions.append(session)
        self._tags.append(tag)
        self._indices.append(len(payloads) - 1)

    def cancel(self, session: int, tag: int) -> None:
        self._cancel_sessions.append(session)
        self._cancel_tags.append(tag)

    def end(self, session: int) -> None:
        self._ends.append(session)

    def take(self) -> tuple[link_pb2.Orders, list[Buffer]]:
        """The batch and its payload frames; begins a new one."""
        orders = link_pb2.Orders(
            payload_sizes=[len(payload) for payload in self._payloads],
            instruct_sessions=self._sessions,
            instruct_tags=self._tags,
            instruct_payloads=self._indices,
            cancel_sessions=self._cancel_sessions,
            cancel_tags=self._cancel_tags,
            end_sessions=self._ends,
        )
        frames = pack(self._payloads)
        self.clear()
        return orders, frames
