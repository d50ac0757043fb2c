"""What the coordinator has to tell one worker, gathered until the end of the event loop's turn.

The counterpart of manager/reports.py. An instruction that goes to many participants of a worker is packed
once.
"""

from __future__ import annotations

from manager.members import Member
from protos import link_pb2
from protos.frames import Buffer, pack


class OrdersBatch:
    """One batch in the making."""

    __slots__ = ("_cancel_sessions", "_cancel_tags", "_ends", "_sends")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._sends: list[tuple[Member, int, bytes]] = []
        self._cancel_sessions: list[int] = []
        self._cancel_tags: list[int] = []
        self._ends: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._sends or self._cancel_sessions or self._ends)

    def instruct(self, send: tuple[Member, int, bytes]) -> None:
        """Adds an instruction: whose, its tag, its payload."""
        self._sends.append(send)

    def cancel(self, session: int, tag: int) -> None:
        self._cancel_sessions.append(session)
        self._cancel_tags.append(tag)

    @property
    def ends(self) -> list[int]:
        """Sessions that are to be ended."""
        return self._ends

    def end(self, session: int) -> None:
        self._ends.append(session)

    def take(self) -> tuple[link_pb2.Orders, list[Buffer]]:
        """The batch and its payload frames; begins a new one."""
        payloads: list[Buffer] = []
        indices: list[int] = []
        last: bytes | None = None
        for _, _, payload in self._sends:
            if payload is not last:
                payloads.append(payload)
                last = payload
            indices.append(len(payloads) - 1)
        orders = link_pb2.Orders(
            payload_sizes=list(map(len, payloads)),
            instruct_sessions=[send[0].session for send in self._sends],
            instruct_tags=[send[1] for send in self._sends],
            instruct_payloads=indices,
            cancel_sessions=self._cancel_sessions,
            cancel_tags=self._cancel_tags,
            end_sessions=self._ends,
        )
        self.clear()
        return orders, pack(payloads)
