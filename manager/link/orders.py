"""Carries out what the coordinator orders: to instruct, cancel, end and move streams, and to close batches.

A stream that has ended is passed over: its end is being reported. What can't be done ends the stream, so that
its call ends, too. What the orders mean is in PROTOCOL.md B.5.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Sequence

from manager.payloads.blobs import Payload
from manager.reducing.shares import reduction_of
from manager.serving.folding import Folding
from manager.serving.incoming import pieces
from manager.serving.servicer import Servicer
from manager.serving.stream import Stream, Wave
from manager.serving.verdicts import OUT_OF_STEP, REPLACED
from protos import link_pb2
from protos.messages import refusal

log = logging.getLogger("muster.worker")


class Orders:
    """Those to one worker."""

    def __init__(
        self, servicer: Servicer, folding: Folding, answer: Callable[[int, int, Payload], None]
    ) -> None:
        """``answer`` is told of a session, a tag, and what is answered there in a participant's place."""
        self._servicer = servicer
        self._folding = folding
        self._answer = answer

    def obey(self, orders: link_pb2.Orders, payloads: Sequence[Payload | None]) -> None:
        """``payloads`` are what the orders name by number; None for one that could not be opened."""
        streams = self._servicer.streams
        to_write = [None if payload is None else pieces(payload) for payload in payloads]
        for session, tag, index in zip(
            orders.instruct_sessions, orders.instruct_tags, orders.instruct_payloads, strict=True
        ):
            if (stream := streams.get(session)) is not None:
                self._instruct(stream, tag, to_write[index])
        for broadcast in orders.broadcasts:
            self._broadcast(broadcast, to_write[broadcast.payload])
        for session, tag in zip(orders.cancel_sessions, orders.cancel_tags, strict=True):
            if (stream := streams.get(session)) is not None:
                stream.cancel(tag)
        for batch in orders.close_batches:
            self._folding.close(batch)
        for session in orders.end_sessions:
            if (stream := streams.get(session)) is not None:
                stream.end(REPLACED)
        for move in orders.moves:
            for session in move.sessions:
                delay = random.uniform(move.min_seconds, move.max_seconds)  # noqa: S311 - spreads the load
                self._servicer.move(session, delay, move.address)

    def _broadcast(self, broadcast: link_pb2.Broadcast, to_write: Iterable[bytes] | None) -> None:
        streams, tag, batch = self._servicer.streams, broadcast.tag, None
        if broadcast.batch:
            try:
                batch = self._folding.batch(broadcast.batch, reduction_of(broadcast.reduction))
            except ValueError as error:  # nobody need work for a reducer that can't be
                refused = refusal(str(error))
                for session in broadcast.sessions:
                    self._answer(session, tag, refused)
                return
        all_there, wave = True, Wave(hurry=broadcast.hurry)
        for session in broadcast.sessions:
            stream = streams.get(session)
            if stream is None or not self._instruct(stream, tag, to_write):
                all_there = False
            elif batch is not None:
                self._folding.instructed(batch, stream)
            else:
                stream.wave = wave
                wave.left += 1
        if batch is not None:
            self._folding.sent(batch, tag, all_there=all_there, hurry=broadcast.hurry)

    def _instruct(self, stream: Stream, tag: int, to_write: Iterable[bytes] | None) -> bool:
        if to_write is None:
            stream.end(OUT_OF_STEP)
        elif stream.instruct(tag, to_write):
            return True
        else:
            log.error("was told to instruct %s, which is busy", stream)
            stream.end(OUT_OF_STEP)
        return False
