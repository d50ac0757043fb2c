"""What an attached script waits for: participants, and calls that run. client.py fills it in."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from manager.core.backend import Acquired, Listener
from manager.core.call import Answer, OutcomeKind
from manager.errors import NotEnoughParticipants
from manager.payloads.blobs import Blob, Payload
from protos import control_pb2


@dataclass(slots=True)
class PendingRequest:
    future: asyncio.Future[Acquired]
    asked: int
    where: Mapping[str, str]

    def fails(self, shortage: control_pb2.NotEnough) -> None:
        """Its time is up."""
        if not self.future.done():
            error = NotEnoughParticipants(
                asked=self.asked,
                matching_by_worker=shortage.matching_by_worker,
                taken=shortage.taken,
                pooled=shortage.pooled,
                waited=shortage.waited_seconds,
                where=self.where,
            )
            self.future.set_exception(error)


@dataclass(slots=True)
class PendingCall:
    id: int
    waiter: asyncio.Future[None]
    pending: int
    outcomes: list[Answer | None]
    payloads: Sequence[Payload]  # kept until it ends: the coordinator may have to open them yet
    listener: Listener | None
    states: list[Payload] = field(default_factory=list)
    results: int = 0
    folded: int = 0
    bytes: int = 0

    def settle(self, arrived: Sequence[tuple[int, int, Payload | None]]) -> None:
        """These outcomes have come; an answer that can't be opened is None."""
        for index, outcome, answer in arrived:
            kind = OutcomeKind.LOST if answer is None else OutcomeKind(outcome)
            self.outcomes[index] = (kind, answer or b"")
            self.results += kind is OutcomeKind.RESULT
            self.bytes += len(answer or b"")
            if isinstance(answer, Blob) and self.listener is None:
                answer.settle()  # descriptors are few, and it stays
        self.pending -= len(arrived)

    @property
    def answered(self) -> int:
        return max(self.results, self.folded) if self.pending else self.results

    @property
    def failed(self) -> int:
        return len(self.outcomes) - self.pending - self.results
