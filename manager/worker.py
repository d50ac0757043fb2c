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
from collections.abc import Sequence
from dataclasses import dataclass

import zmq
from google.protobuf.message import DecodeError

from manager.endpoint import Endpoint
from manager.errors import StartError
from manager.listen import Address
from manager.reports import Reports
from manager.servicer import ANONYMOUS, Servicer, pieces
from manager.sockets import LinkSocket
from manager.stream import OUT_OF_STEP, REPLACED, EndReason, Stream
from manager.uplink import Drain, Effect, Exit, Greet, Obey, Opened, State, Uplink
from manager.usage import calm_garbage_collection, resident_bytes
from protos import link_pb2, stream_pb2
from protos.frames import Buffer, MalformedFramesError, check_orders, unpack

log = logging.getLogger("muster.worker")

GOODBYE_TIMEOUT = 1.0
"""Seconds that the coordinator gets to acknowledge the last reports."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker is told when it is started."""

    coordinator: str  # the link's ZeroMQ endpoint
    index: int
    incarnation: int
    listen: Address
    share_port: bool
    orphan_grace: float = 30.0  # seconds to outlive a silent coordinator, and to drain when terminated


class Worker:
    """Sink of the servicer, subject of the coordinator."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._servicer = Servicer(self)
        self._endpoint = Endpoint(self._servicer)
        self._reports = Reports()
        self._uplink = Uplink(grace=settings.orphan_grace, now=time.monotonic())
        self._socket = LinkSocket(zmq.DEALER, self._on_message)
        self._loop = asyncio.get_running_loop()
        self._flush_scheduled = False
        self._finishing: asyncio.Task[None] | None = None
        self._stopped: asyncio.Future[str | None] = self._loop.create_future()
        self._address = settings.listen

    async def run(self) -> str | None:
        """Serves until drained (returns None) or the link is of no use any more (returns why)."""
        settings = self._settings
        try:
            self._address = await self._endpoint.start(settings.listen, share_port=settings.share_port)
        except OSError as error:
            self._socket.close()
            raise StartError(str(error)) from None
        self._loop.add_signal_handler(signal.SIGTERM, self._finish, settings.orphan_grace, None)
        self._loop.add_signal_handler(signal.SIGINT, lambda: None)  # the coordinator decides
        self._connect()
        calm_garbage_collection()
        beat = self._loop.create_task(self._beat())
        try:
            return await self._stopped
        finally:
            beat.cancel()
            self._socket.close(linger=1.0)

    def _connect(self) -> None:
        socket = self._socket.socket
        identity = f"{self._settings.index}.{self._settings.incarnation}.{os.getpid()}"
        socket.setsockopt(zmq.IDENTITY, identity.encode())
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2_000)
        socket.connect(self._settings.coordinator)
        self._socket.start()

    # From participants

    def joined(self, stream: Stream, hello: stream_pb2.Hello) -> None:
        self._reports.joined(self._join(stream, hello))
        self._schedule_flush()

    def answered(self, stream: Stream, answer: bytes) -> None:
        self._reports.answered(stream.id, stream.tag, answer)
        if not self._flush_scheduled:
            self._schedule_flush()

    def ended(self, stream: Stream, reason: EndReason.ValueType) -> None:
        self._reports.ended(stream.id, reason)
        self._schedule_flush()

    def _join(self, stream: Stream, hello: stream_pb2.Hello) -> link_pb2.Join:
        settings = self._settings
        anonymous = f"{ANONYMOUS}{settings.index}.{settings.incarnation}.{stream.id}"
        return link_pb2.Join(
            session=stream.id,
            participant_id=hello.participant_id or anonymous,
            attributes=hello.attributes,
            accepts_cancel=hello.accepts_cancel,
            peer=stream.peer,
            tag=stream.tag if stream.busy else 0,
        )

    # To the coordinator

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._uplink.state is State.OPEN and self._reports:
            report, payloads = self._reports.take()
            self._uplink.report(report, payloads)
        self._transmit()

    def _transmit(self) -> None:
        out = self._uplink.out
        for frames in out:
            self._socket.send(frames)
        out.clear()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(max(0.0, self._uplink.next_tick() - time.monotonic()))
            beat = link_pb2.Heartbeat(
                cpu_seconds=time.process_time(),
                rss_bytes=resident_bytes(),
                sessions=len(self._servicer.streams),
                violations=self._servicer.violations,
            )
            self._carry_out(self._uplink.tick(beat, time.monotonic()))

    # From the coordinator

    def _on_message(self, frames: list[Buffer]) -> None:
        try:
            message = link_pb2.Downward.FromString(bytes(frames[0]))
            payloads = unpack(frames[1:], message.orders.payload_sizes)
            check_orders(message.orders)
        except (DecodeError, MalformedFramesError) as error:
            log.warning("ignored a message on the link that can't be read: %s", error)
            return
        self._carry_out(self._uplink.received(message, payloads, time.monotonic()))

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Obey():
                    self._obey(effect.orders, effect.payloads)
                case Greet():
                    self._reports.clear()
                    self._uplink.hello(self._hello())
                case Opened():
                    self._schedule_flush()
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
            sessions=[
                self._join(stream, stream.hello)
                for stream in self._servicer.streams.values()
                if stream.hello is not None
            ],
        )

    def _obey(self, orders: link_pb2.Orders, payloads: Sequence[Buffer]) -> None:
        streams = self._servicer.streams
        to_write = [pieces(bytes(payload)) for payload in payloads]
        for session, tag, index in zip(
            orders.instruct_sessions, orders.instruct_tags, orders.instruct_payloads, strict=True
        ):
            stream = streams.get(session)  # one that has ended is being reported as such
            if stream is not None and not stream.instruct(tag, to_write[index]):
                log.error("was told to instruct %s, which is busy", stream)
                stream.end(OUT_OF_STEP)  # so that the call ends, too
        for session, tag in zip(orders.cancel_sessions, orders.cancel_tags, strict=True):
            if (stream := streams.get(session)) is not None:
                stream.cancel(tag)
        for session in orders.end_sessions:
            if (stream := streams.get(session)) is not None:
                stream.end(REPLACED)

    # The end

    def _finish(self, grace: float, reason: str | None) -> None:
        if self._finishing is None:
            self._finishing = self._loop.create_task(self._drain(grace, reason))
        else:
            self._endpoint.hasten(grace)

    async def _drain(self, grace: float, reason: str | None) -> None:
        """Lets participants finish and sends them elsewhere, tells the coordinator, and ends the worker."""
        await self._endpoint.drain(grace)
        self._flush()
        self._uplink.goodbye("drained")
        self._transmit()
        deadline = time.monotonic() + GOODBYE_TIMEOUT
        while self._uplink.unacknowledged and time.monotonic() < deadline:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.01)
        self._stopped.set_result(reason)


def pin(cpu: int) -> None:
    """Binds this process to one of the CPUs it may use, counted from 0 and around.

    Raises StartError where the platform can't.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise StartError("binding to a CPU needs sched_setaffinity, which this platform doesn't have")
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[cpu % len(allowed)]})
