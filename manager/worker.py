"""One worker process: the participants' streams on one side, the link to the coordinator on the other.

A shell: servicer.py and session.py decide about streams, uplink.py about the link. This file hands events
across on one event loop, beats the heart from that same loop, and drains when told to.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import zmq
from google.protobuf.message import DecodeError

from manager.access.security import Security
from manager.core.members import ANONYMOUS
from manager.limits import Limits
from manager.link.confirmations import Confirmations
from manager.link.keys import WorkerKeys
from manager.link.orders import Orders
from manager.link.reports import Reports
from manager.link.sockets import LinkSocket, routing_id
from manager.link.uplink import Drain, Effect, Exit, Greet, Obey, Opened, State, Uplink
from manager.listen import Address
from manager.logs import Sparingly
from manager.payloads.blobs import SHARE_SIZE, Payload, Sample, can_open, open_all, view_of
from manager.payloads.memory import Memory
from manager.reducing.shares import Folded, Partial
from manager.serving.endpoint import Endpoint
from manager.serving.folding import Folding
from manager.serving.incoming import checked
from manager.serving.servicer import Servicer
from manager.serving.stream import Stream
from manager.serving.verdicts import EndReason
from manager.timeouts import FOLDING_TIMEOUT, GOODBYE_TIMEOUT
from manager.usage import Trimmer, calm_garbage_collection, keep_freed_memory, resident_bytes, trim
from protos import link_pb2, stream_pb2
from protos.envelope import Kind
from protos.frames import Buffer, MalformedFramesError, Shared, check_orders, unpack

log = logging.getLogger("muster.worker")

GATHER_INTERVAL = 0.05
HURRY_INTERVAL = 0.01
"""Seconds for which answers to a broadcast are gathered, before all are there; the latter where the caller
looks at each. The coordinator's cost is per report."""

BEAT_PAUSE = 0.5
"""Seconds until the next attempt when something has gone wrong with a heartbeat."""

SILENCE = 3.0
"""Seconds without a word from the coordinator after which a worker that is pressed to end waits for it no
longer."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker is told when it is started."""

    coordinator: str  # the link's ZeroMQ endpoint
    index: int
    incarnation: int
    listen: Address
    share_port: bool
    orphan_grace: float = 30.0  # seconds to outlive a silent coordinator, and to drain when terminated
    reducers: tuple[str, ...] = ()  # import paths of custom reducers that may be used
    limits: Limits = field(default_factory=Limits)
    files: int = 1024  # how many this process may open
    security: Security = field(default_factory=Security)
    link_keys: WorkerKeys | None = None  # for a link over TCP


class Worker:
    """Sink of the servicer and of the batches, subject of the coordinator."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._memory = Memory()
        self._servicer = Servicer(self, settings.limits, settings.files, self._memory)
        self._sparingly = Sparingly(log)
        self._sample = Sample()
        self._opens_memory = False  # whether this process can open the coordinator's memory …
        self._shares_memory = False  # … and the other way round
        self._coordinator_pid = 0
        self._endpoint = Endpoint(self._servicer, settings.limits, settings.security)
        self._reports = Reports()
        self._confirmations = Confirmations()
        self._folding = Folding(self, settings.reducers)
        self._orders = Orders(self._servicer, self._folding, self._answer)
        self._uplink = Uplink(grace=settings.orphan_grace, now=time.monotonic())
        self._socket = LinkSocket(zmq.DEALER, self._on_message)
        self._loop = asyncio.get_running_loop()
        self._flush_scheduled = False
        self._gathering: asyncio.TimerHandle | None = None
        self._finishing: asyncio.Task[None] | None = None
        self._finishing_for = 0  # the epoch of the coordinator at the time
        self._leaving = False  # it has been told to end …
        self._pressed = False  # … and again
        self._stopped: asyncio.Future[str | None] = self._loop.create_future()

    async def run(self) -> str | None:
        """Serves until drained (returns None) or the link is of no use any more (returns why)."""
        settings = self._settings
        try:
            self._address = await self._endpoint.start(settings.listen, share_port=settings.share_port)
            self._loop.add_signal_handler(signal.SIGTERM, self._terminated)
            for name in ("SIGINT", "SIGHUP"):
                if hasattr(signal, name):  # the coordinator decides
                    self._loop.add_signal_handler(getattr(signal, name), lambda: None)
            self._connect()
            calm_garbage_collection()
            keep_freed_memory()
            beat = self._loop.create_task(self._beat())
            try:
                return await self._stopped
            finally:
                beat.cancel()
        finally:
            self._socket.close(linger=1.0)

    def _connect(self) -> None:
        settings = self._settings
        identity = routing_id(settings.index, settings.incarnation, os.getpid())
        self._socket.connect(settings.coordinator, identity, settings.link_keys)

    # From participants

    def joined(self, stream: Stream, hello: stream_pb2.Hello) -> None:
        self._reports.joined(self._join(stream, hello))
        self._schedule_flush()

    def answered(self, stream: Stream, answer: Payload, kind: Kind) -> None:
        if stream.batch is None:
            self._reports.answered(stream.id, stream.tag, checked(answer, kind))
            if self._ebbs(stream):
                self._schedule_flush()
        else:
            self._folding.answered(stream, answer, kind)

    def _ebbs(self, stream: Stream) -> bool:
        """Whether the stream's answer should be reported at once: it isn't one of many that come together."""
        wave, stream.wave = stream.wave, None
        if wave is None:
            return True
        wave.left -= 1
        if not wave.left:
            return True
        if self._gathering is None and not self._flush_scheduled:
            interval = HURRY_INTERVAL if wave.hurry else GATHER_INTERVAL
            self._gathering = self._loop.call_later(interval, self._flush)
        return False

    def ended(self, stream: Stream, reason: EndReason.ValueType) -> None:
        stream.over = reason
        self._ebbs(stream)
        if self._folding.ended(stream):
            self.ended_late(stream)

    def when_heard(self, callback: Callable[[], None]) -> None:
        self._confirmations.add(callback)
        self._schedule_flush()

    # From batches

    def not_folded(self, stream: Stream, answer: Payload) -> None:
        self._answer(stream.id, stream.tag, answer)

    def _answer(self, session: int, tag: int, answer: Payload) -> None:
        self._reports.answered(session, tag, answer)
        self._schedule_flush()

    def folded(self, folded: Folded) -> None:
        self._reports.folded(folded)
        self._schedule_flush()

    def partial(self, partial: Partial) -> None:
        self._reports.partial(partial)
        self._schedule_flush()

    def free(self, stream: Stream) -> None:
        self._servicer.folded(stream)

    def ended_late(self, stream: Stream) -> None:
        if stream.over is not None:
            self._reports.ended(stream.id, stream.over)
            self._schedule_flush()

    def _join(self, stream: Stream, hello: stream_pb2.Hello) -> link_pb2.Join:
        anonymous = f"{ANONYMOUS}{self._settings.index}.{self._settings.incarnation}.{stream.id}"
        return link_pb2.Join(
            session=stream.id,
            participant_id=hello.participant_id or anonymous,
            attributes=hello.attributes,
            accepts_cancel=hello.accepts_cancel,
            peer=stream.peer,
            tag=stream.tag if stream.busy else 0,
            joined_at=stream.joined_at,
        )

    # To the coordinator

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if self._uplink.state is State.OPEN and self._reports:
            report, payloads = self._reports.take()
            if payloads and max(map(len, payloads)) >= SHARE_SIZE:
                passed = self._memory.share if self._shares_memory else view_of
                payloads = [passed(each) for each in payloads]
            self._uplink.report(report, payloads)
        if self._confirmations:
            self._confirmations.reported(self._uplink.sent)
            self._confirm()
        self._transmit()

    @property
    def _alone(self) -> bool:
        """Whether there is no coordinator to wait for."""
        silent = self._uplink.silence(time.monotonic()) > SILENCE
        return self._uplink.state is not State.OPEN or (self._pressed and silent)

    def _confirm(self) -> None:
        """Does what has waited for the coordinator to hear of something."""
        if not self._alone:
            due = self._confirmations.heard(self._uplink.sent - self._uplink.unacknowledged)
        else:
            due = self._confirmations.give_up()
        for callback in due:
            callback()

    def _transmit(self) -> None:
        out = self._uplink.out
        for frames in out:
            self._socket.send(frames)
        out.clear()

    async def _beat(self) -> None:
        trimmer = Trimmer(time.monotonic())
        while True:
            await asyncio.sleep(max(0.0, self._uplink.next_tick() - time.monotonic()))
            try:
                beat = self._heartbeat(trimmer)
            except Exception:  # that it lives is the most that it has to say
                self._sparingly.exception("heartbeat", "a heartbeat can't say how this worker is")
                beat = link_pb2.Heartbeat(shares_memory=self._opens_memory)
            try:
                self._carry_out(self._uplink.tick(beat, time.monotonic()))
                if self._confirmations:
                    self._confirm()
            except Exception:
                self._sparingly.exception("beat", "the link to the coordinator could not be served")
                await asyncio.sleep(BEAT_PAUSE)

    def _heartbeat(self, trimmer: Trimmer) -> link_pb2.Heartbeat:
        """What this worker says of itself. Gives memory back first, if it is time."""
        self._memory.forget()
        cpu, sessions = time.process_time(), len(self._servicer.streams)
        if trimmer.due(time.monotonic(), cpu, sessions):
            trim()
            trimmer.trimmed(time.process_time())
        return link_pb2.Heartbeat(
            cpu_seconds=cpu,
            rss_bytes=resident_bytes(),
            refused=self._servicer.refused,
            troubles=self._endpoint.troubles,
            shares_memory=self._opens_memory,
        )

    # From the coordinator

    def _on_message(self, frames: list[Buffer]) -> None:
        try:
            message = link_pb2.Downward.FromString(bytes(frames[0]))
            payloads = unpack(frames[1:], message.orders.payloads)
            check_orders(message.orders)
        except (DecodeError, MalformedFramesError) as error:
            log.warning("ignored a message on the link that can't be read: %s", error)
            return
        self._carry_out(self._uplink.received(message, time.monotonic()), payloads)
        if self._confirmations:
            self._confirm()

    def _carry_out(self, effects: list[Effect], payloads: Sequence[Buffer | Shared] = ()) -> None:
        for effect in effects:
            match effect:
                case Obey(orders):
                    self._orders.obey(orders, open_all(payloads, self._coordinator_pid, "the coordinator"))
                    if orders.payloads.shared:
                        self._uplink.acknowledge()  # the coordinator keeps the memory until then
                case Greet():
                    self._reports.clear()
                    self._folding.forget()
                    self._uplink.hello(self._hello())
                case Opened(welcome):
                    self._shares_memory = welcome.shares_memory
                    self._opens_memory = can_open(welcome.memory)
                    self._coordinator_pid = welcome.memory.pid
                    self._schedule_flush()
                    if self._finishing is not None and self._uplink.epoch != self._finishing_for:
                        self._endpoint.hasten(0.0)  # those whose calls it waits for are gone
                case Drain():
                    self._finish(effect.grace, None)
                case Exit():
                    self._finish(0.0, effect.reason)  # nobody waits for answers any more
        self._transmit()

    def _hello(self) -> link_pb2.Hello:
        return link_pb2.Hello(
            worker=self._settings.index,
            incarnation=self._settings.incarnation,
            pid=os.getpid(),
            address=str(self._address),
            memory=self._sample.message(),
            leaving=self._leaving or self._finishing is not None,
            capacity=self._servicer.capacity,
            sessions=[
                self._join(stream, stream.hello)
                for stream in self._servicer.streams.values()
                if stream.hello is not None
            ],
        )

    # The end

    def _terminated(self) -> None:
        """SIGTERM. The coordinator says when to drain, for it knows what still waits for participants here.

        Without one, or at the second SIGTERM, that is now.
        """
        self._pressed = self._leaving
        self._leaving = True
        if self._pressed or self._uplink.state is not State.OPEN:
            self._finish(self._settings.orphan_grace, None)
        self._reports.leaving()
        self._schedule_flush()

    def _finish(self, grace: float, reason: str | None) -> None:
        if self._finishing is None:
            self._finishing_for = self._uplink.epoch
            self._finishing = self._loop.create_task(self._drain(grace, reason))
        else:
            self._endpoint.hasten(grace)

    async def _drain(self, grace: float, reason: str | None) -> None:
        """Lets participants finish and sends them elsewhere, tells the coordinator, and ends the worker."""
        try:
            await self._endpoint.drain(grace)
            await self._folding.finish(FOLDING_TIMEOUT)
            self._flush()
            self._uplink.goodbye("drained")
            self._transmit()
            until = time.monotonic() + GOODBYE_TIMEOUT
            # One that is held up must not lose the last results; how long it may be silent has a limit.
            while self._uplink.unacknowledged and (  # noqa: ASYNC110 - once, at the end
                time.monotonic() < until or not self._alone
            ):
                await asyncio.sleep(0.01)
        except Exception as error:
            log.exception("this worker can't drain as it should; it exits all the same")
            reason = reason or f"its drain went wrong: {error}"
        self._stopped.set_result(reason)
