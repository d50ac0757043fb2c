"""The control server: what training scripts and the command line ask a running coordinator.

A script attaches with one stream; what it asks for (attachment.py) lives exactly as long as that stream, so a
script that dies leaves no lease and no call behind. Decides who may attach, and answers what needs no stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Protocol

import grpc
import grpc.aio

from coordinator.control.attachment import CONTROL_VERSION, Attachment, describe
from coordinator.control.gate import ControlGate
from coordinator.control.writer import BatchWriter
from coordinator.control_address import ControlAddress, UnixAddress, is_local
from coordinator.errors import WorkerBootError
from coordinator.settings import Settings
from coordinator.unix_socket import SocketPlace
from coordinator.workers.slot import Slot
from manager.access.certificates import Certificates
from manager.access.token_file import read_tokens
from manager.access.watched import keep_looking, troubles
from manager.core.dispatcher import Dispatcher
from manager.core.members import Member
from manager.errors import AddressInUse, Closed, StartError
from manager.listen import Address, addresses_of, probe
from manager.logs import keep_headers_out
from manager.payloads.blobs import Sample
from manager.serving.closing import Closing
from manager.serving.connections import Connections
from manager.serving.crowds import Crowds
from manager.serving.open_sockets import OpenSockets
from manager.serving.refused import Refused
from protos import control_pb2
from protos.control_pb2_grpc import ControlServicer, add_ControlServicer_to_server
from protos.forks import check_process

PAGE = 500
"""Participants per page of ListParticipants."""


class Subject(Protocol):
    """The coordinator that is controlled."""

    settings: Settings

    @property
    def dispatcher(self) -> Dispatcher: ...

    def status(self) -> control_pb2.Status: ...

    def drain(self, grace: float | None = None) -> float: ...

    def restart_workers(self) -> AsyncGenerator[Slot]: ...


class _Servicer(ControlServicer):
    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.crowds = Crowds(1)  # where scripts are; how many there may be others say
        self._dispatcher = subject.dispatcher
        self._sample = Sample()
        self.attachments: dict[int, Attachment] = {}
        self._ids = itertools.count(1)

    async def GetStatus(  # noqa: N802
        self, request: control_pb2.StatusRequest, context: object
    ) -> control_pb2.Status:
        return self._subject.status()

    async def Drain(  # noqa: N802
        self,
        request: control_pb2.DrainRequest,
        context: grpc.aio.ServicerContext[control_pb2.DrainRequest, control_pb2.DrainReply],
    ) -> control_pb2.DrainReply:
        grace = request.grace_seconds if request.HasField("grace_seconds") else None
        if grace is not None and not 0 <= grace < float("inf"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a grace period of {grace} s")
        calls = len(self._dispatcher.calls)
        return control_pb2.DrainReply(grace_seconds=self._subject.drain(grace), calls=calls, pid=os.getpid())

    async def RestartWorkers(  # type: ignore[override]  # noqa: N802
        self,
        request: control_pb2.RestartRequest,
        context: grpc.aio.ServicerContext[control_pb2.RestartRequest, control_pb2.Restarted],
    ) -> None:
        # Not a generator: gRPC would leave it where it is when the client has gone.
        total = self._subject.settings.workers
        try:
            async with contextlib.aclosing(self._subject.restart_workers()) as restarted:
                async for slot in restarted:
                    await context.write(
                        control_pb2.Restarted(
                            worker=slot.index,
                            incarnation=slot.incarnation,
                            pid=slot.process.pid if slot.process is not None else 0,
                            done=slot.index + 1,
                            total=total,
                        )
                    )
        except (RuntimeError, Closed, WorkerBootError) as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))

    async def ListParticipants(  # noqa: N802
        self, request: control_pb2.ListParticipantsRequest, context: object
    ) -> AsyncIterator[control_pb2.ParticipantPage]:
        now = time.monotonic()
        members = self._dispatcher.pool.matching(dict(request.where))
        for start in range(0, len(members), PAGE):
            yield control_pb2.ParticipantPage(
                participants=[describe(member, now) for member in members[start : start + PAGE]]
            )

    async def Attach(  # type: ignore[override]  # noqa: N802
        self,
        request_iterator: AsyncIterator[control_pb2.ClientBatch],
        context: grpc.aio.ServicerContext[control_pb2.ClientBatch, control_pb2.ServerBatch],
    ) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - gRPC runs each handler in a task
        writer = BatchWriter(control_pb2.ServerBatch, context.write, on_error=task.cancel)
        attachment = Attachment(self._dispatcher, writer, self._sample.message())
        number = next(self._ids)
        try:
            async for batch in request_iterator:
                if number not in self.attachments:
                    if batch.version != CONTROL_VERSION:
                        await context.abort(
                            grpc.StatusCode.FAILED_PRECONDITION,
                            f"control version {batch.version} was offered, {CONTROL_VERSION} is spoken here; "
                            f"install the same version of muster on both sides",
                        )
                    if len(self.attachments) >= self._subject.settings.max_scripts:
                        await context.abort(
                            grpc.StatusCode.RESOURCE_EXHAUSTED,
                            f"{len(self.attachments)} scripts are attached, as many as --max-scripts allows",
                        )
                    self.attachments[number] = attachment
                    self.crowds.enter(context.peer())
                    await context.write(attachment.greet(batch))
                try:
                    attachment.handle(batch)
                except ValueError as error:
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            if self.attachments.pop(number, None) is not None:
                self.crowds.leave(context.peer())
            attachment.close()

    def gone(self, member: Member) -> None:
        for attachment in self.attachments.values():
            attachment.gone(member)


CONTROL_OPTIONS = [
    # Between processes of one owner, messages may be as large as protobuf can make them.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Either end notices within 15 s when the other is frozen or cut off.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]

VISITORS = 200
"""Connections to a control server beside those of scripts: of commands, and of strangers."""


def _server_options(settings: Settings) -> list[tuple[str, int]]:
    """Who only connects must not take the files that the coordinator needs itself, nor keep others out for
    long."""
    limits = settings.limits
    return [
        *CONTROL_OPTIONS,
        ("grpc.so_reuseport", 0),
        ("grpc.max_allowed_incoming_connections", settings.max_scripts + VISITORS),
        ("grpc.server_handshake_timeout_ms", round(limits.handshake_timeout * 1000)),
        ("grpc.max_connection_idle_ms", round(limits.idle_timeout * 1000)),
    ]


def check(settings: Settings) -> None:
    """Raises StartError for what will be in a control server's way: nobody should wait for workers first."""
    if isinstance(settings.control, UnixAddress):
        SocketPlace(settings.control.path).close()
    elif settings.control is not None:
        probe(settings.control)
    try:
        if settings.control_tokens is not None:
            read_tokens(str(settings.control_tokens))
    except ValueError as error:
        raise StartError(str(error)) from None


class ControlServer:
    """Serves the control API of one coordinator."""

    def __init__(self, subject: Subject) -> None:
        self._settings = subject.settings
        self._servicer = _Servicer(subject)
        self._server: grpc.aio.Server | None = None
        self._gate: ControlGate | None = None
        self._certificates: Certificates | None = None
        self._place: SocketPlace | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: Closing | None = None
        self.closed: Refused = Counter()
        """Connections that were closed, or cut off, by cause."""
        self.address = ""
        subject.dispatcher.on_ended = self._servicer.gone

    @property
    def attached(self) -> int:
        return len(self._servicer.attachments)

    @property
    def refused(self) -> int:
        """Calls without a valid token, so far."""
        return self._gate.refused if self._gate is not None else 0

    @property
    def troubles(self) -> list[str]:
        """What is wrong with files of certificates and tokens, or with connections, a sentence each."""
        return troubles(self._certificates, self._gate, self._closing)

    async def start(self, address: ControlAddress) -> None:
        """Raises AddressInUse or StartError if it can't listen there, or its files can't be used."""
        check_process()
        settings = self._settings
        try:
            if settings.control_tokens is not None:
                self._gate = ControlGate(settings.control_tokens)
            if settings.security.tls is not None and not is_local(address):
                cert, key, _ = settings.security.tls
                self._certificates = Certificates(cert, key)
        except ValueError as error:
            raise StartError(str(error)) from None
        keep_headers_out()
        server = grpc.aio.server(
            interceptors=[] if self._gate is None else [self._gate],
            options=_server_options(settings),
        )
        add_ControlServicer_to_server(self._servicer, server)
        if isinstance(address, UnixAddress):
            self._place = SocketPlace(address.path)
            server.add_insecure_port(self._place.target)
            self._place.settle()
            self.address = str(address)
        else:
            self.address = self._listen(server, address)
        await server.start()
        self._server = server
        if self._gate is not None or self._certificates is not None:
            self._tasks.append(asyncio.create_task(keep_looking(self._look)))
        if isinstance(address, Address):
            most = settings.max_scripts + VISITORS
            connections = Connections(settings.limits, most, self.closed, " to the control address")
            port = Address.parse(self.address).port
            sockets = OpenSockets(port, await asyncio.to_thread(addresses_of, address))
            self._closing = Closing(connections, sockets, self._servicer.crowds.at)
            self._tasks.append(asyncio.create_task(self._closing.run()))

    def _listen(self, server: grpc.aio.Server, address: Address) -> str:
        # Not reserved: what scripts that were attached before have left in TIME_WAIT would be in the way.
        free = str(probe(address))
        try:
            if self._certificates is None:
                port = server.add_insecure_port(free)
            else:
                port = server.add_secure_port(free, self._certificates.credentials())
        except RuntimeError:
            raise AddressInUse(free) from None
        return str(Address(address.host, port))

    async def _look(self) -> None:
        """Takes over what has changed in the files. In a thread: a disk may be slow."""
        if self._certificates is not None:
            await asyncio.to_thread(self._certificates.look)
        if self._gate is not None and await asyncio.to_thread(self._gate.look):
            self._gate.clear_out()

    def drain(self) -> None:
        """Tells all attached scripts that the coordinator is about to end."""
        for attachment in self._servicer.attachments.values():
            attachment.drain()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._server is not None:
            await self._server.stop(0)
        if self._place is not None:
            self._place.close()
