"""What a worker has to tell the coordinator, gathered until the end of the event loop's turn.

Packing everything of one turn into one message is what keeps the coordinator cheap: its cost is per message,
not per answer.
"""

from __future__ import annotations

from protos import link_pb2
from protos.frames import Buffer, pack


class Reports:
    """One batch in the making: joins, answers, ends, in the order in which they are handled."""

    __slots__ = ("_answers", "_end_reasons", "_end_sessions", "_joins", "_sessions", "_tags")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._joins: list[link_pb2.Join] = []
        self._sessions: list[int] = []
        self._tags: list[int] = []
        self._answers: list[Buffer] = []
        self._end_sessions: list[int] = []
        self._end_reasons: list[link_pb2.EndReason.ValueType] = []

    def __bool__(self) -> bool:
        return bool(self._sessions or self._joins or self._end_sessions)

    def joined(self, join: link_pb2.Join) -> None:
        self._joins.append(join)

    def answered(self, session: int, tag: int, answer: bytes) -> None:
        self._sessions.append(session)
        self._tags.append(tag)
        self._answers.append(answer)

    def ended(self, session: int, reason: link_pb2.EndReason.ValueType) -> None:
        self._end_sessions.append(session)
        self._end_reasons.append(reason)

    def take(self) -> tuple[link_pb2.Report, list[Buffer]]:
        """The batch and its payload frames; begins a new one."""
        report = link_pb2.Report(
            joins=self._joins,
            answer_sessions=self._sessions,
            answer_tags=self._tags,
            answer_sizes=[len(answer) for answer in self._answers],
            end_sessions=self._end_sessions,
            end_reasons=self._end_reasons,
        )
        frames = pack(self._answers)
        self.clear()
        return report, frames
