"""What a worker has to tell the coordinator, gathered until the end of the event loop's turn.

Packing everything of one turn into one message is what keeps the coordinator cheap: its cost is per message,
not per answer.
"""

from __future__ import annotations

from manager.payloads.blobs import Payload
from manager.reducing.shares import Folded, Partial
from protos import link_pb2


class Reports:
    """One batch in the making: its sections in the order in which they are handled."""

    __slots__ = (
        "_answers",
        "_end_reasons",
        "_end_sessions",
        "_folded",
        "_joins",
        "_leaving",
        "_partials",
        "_sessions",
        "_states",
        "_tags",
    )

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._joins: list[link_pb2.Join] = []
        self._sessions: list[int] = []
        self._tags: list[int] = []
        self._answers: list[Payload] = []
        self._folded: list[link_pb2.Folded] = []
        self._partials: list[link_pb2.Partial] = []
        self._states: list[Payload] = []
        self._end_sessions: list[int] = []
        self._end_reasons: list[link_pb2.EndReason.ValueType] = []
        self._leaving = False

    def __bool__(self) -> bool:
        return bool(
            self._sessions
            or self._joins
            or self._end_sessions
            or self._folded
            or self._partials
            or self._leaving
        )

    def joined(self, join: link_pb2.Join) -> None:
        self._joins.append(join)

    def answered(self, session: int, tag: int, answer: Payload) -> None:
        self._sessions.append(session)
        self._tags.append(tag)
        self._answers.append(answer)

    def folded(self, folded: Folded) -> None:
        self._folded.append(
            link_pb2.Folded(
                batch=folded.batch,
                part=folded.part,
                sessions=folded.sessions,
                bytes=folded.size,
                tag=folded.tag,
            )
        )

    def partial(self, partial: Partial) -> None:
        message = link_pb2.Partial(
            batch=partial.batch,
            part=partial.part,
            closed=partial.closed,
            error=partial.error,
            given_up=partial.given_up,
        )
        for group in partial.groups:
            if group.state is not None:
                # Its place among the states, for now; they come after all answers.
                message.groups.add(schema=group.schema, sessions=group.sessions, payload=len(self._states))
                self._states.append(group.state)
        self._partials.append(message)

    def ended(self, session: int, reason: link_pb2.EndReason.ValueType) -> None:
        self._end_sessions.append(session)
        self._end_reasons.append(reason)

    def leaving(self) -> None:
        """The worker has been told to end."""
        self._leaving = True

    def take(self) -> tuple[link_pb2.Report, list[Payload]]:
        """The batch and its payloads; begins a new one."""
        for partial in self._partials:
            for group in partial.groups:
                group.payload += len(self._answers)
        report = link_pb2.Report(
            joins=self._joins,
            answer_sessions=self._sessions,
            answer_tags=self._tags,
            folded=self._folded,
            partials=self._partials,
            end_sessions=self._end_sessions,
            end_reasons=self._end_reasons,
            leaving=self._leaving,
        )
        payloads = [*self._answers, *self._states]
        self.clear()
        return report, payloads
