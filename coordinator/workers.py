"""The worker processes and the links to them: the coordinator's busiest shell.

Spawns and watches the processes (process.py), sends and receives on the ROUTER socket, and hands events
across: from the links (downlink.py) to the dispatcher, from the dispatcher (as its Transport) to the links.
restarts.py decides about restarts. Payloads pass through unparsed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from google.protobuf.message import DecodeError

from coordinator.downlink import Beat, Departed, Downlink, Event, Greeted, Reported, Silent, State
from coordinator.errors import WorkerBootError
from coordinator.orders import OrdersBatch
from coordinator.process import WorkerProcess, describe_exit
from coordinator.restarts import GiveUp, Restart, RestartPolicy
from coordinator.settings import Settings
from manager.cli import EXIT_COULD_NOT_START
from manager.dispatcher import Dispatcher
from manager.errors import StartError
from manager.listen import Address
from manager.members import Member
from manager.sockets import LinkSocket
from protos import link_pb2
from protos.frames import Buffer, MalformedFramesError, unpack

log = logging.getLogger("muster.coordinator")


@dataclass(eq=False)
class Worker:
    """A slot and what runs in it now."""

    index: int
    downlink: Downlink
    process: WorkerProcess | None = None
    identity: bytes = b""
    address: str = ""
    pid: int = 0
    members: dict[int, Member] = field(default_factory=dict)  # by session
    orders: OrdersBatch = field(default_factory=OrdersBatch)
    heartbeat: link_pb2.Heartbeat = field(default_factory=link_pb2.Heartbeat)
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    restart: asyncio.TimerHandle | None = None
    booted: bool = False
    given_up: bool = False

    @property
    def state(self) -> str:
        """A word for people."""
        if self.given_up:
            return "failed"
        return {State.AWAITED: "starting", State.OPEN: "up", State.GONE: "down"}[self.downlink.state]


class Workers:
    """All workers of a coordinator. Transport of its dispatcher."""

    def __init__(self, settings: Settings, listen: Address, run_dir: Path, epoch: int) -> None:
        self._settings = settings
        self._listen = listen
        self._epoch = epoch
        self._loop = asyncio.get_running_loop()
        self._socket = LinkSocket(zmq.ROUTER, self._on_message)
        self._by_identity: dict[bytes, Worker] = {}
        self._flush_scheduled = False
        self._stopping = False
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._exited = asyncio.Event()
        self._ticker: asyncio.Task[None] | None = None
        self._endpoint = self._bind(run_dir)
        self.dispatcher = Dispatcher(self, first_tag=(epoch << 32) + 1)
        self.workers = [Worker(index, self._new_downlink(index, 1)) for index in range(settings.workers)]
        self.on_change: Callable[[Worker], None] = lambda worker: None

    # Start and stop

    async def start(self) -> None:
        """Spawns all workers and waits until each has said hello.

        Raises WorkerBootError if one can't start.
        """
        self._socket.start()
        for worker in self.workers:
            self._spawn(worker)
        self._ticker = self._loop.create_task(self._tick())
        try:
            await asyncio.wait_for(asyncio.shield(self._ready), self._settings.boot_timeout)
        except TimeoutError:
            late = [str(worker.index) for worker in self.workers if not worker.booted]
            raise WorkerBootError(
                f"worker {', '.join(late)} said nothing within {self._settings.boot_timeout:g} s of its start"
            ) from None

    async def stop(self, grace: float) -> None:
        """Ends all workers: asked to drain, then terminated, then killed. None is left when it returns."""
        self._stopping = True
        for worker in self.workers:
            if worker.restart is not None:
                worker.restart.cancel()
            worker.downlink.drain(grace)
        self._transmit_all()
        stages: list[tuple[Callable[[WorkerProcess], None] | None, float]] = [
            (None, grace + 2.0),
            (WorkerProcess.terminate, 2.0),
            (WorkerProcess.kill, 10.0),
        ]
        for action, patience in stages:
            for worker in self.workers:
                # One that never said hello can't be asked to drain.
                if worker.process is not None and (action or worker.downlink.state is not State.OPEN):
                    (action or WorkerProcess.terminate)(worker.process)
            if await self._all_exited(patience):
                break
        self.dispatcher.close()
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker
        if not self._ready.done():
            self._ready.cancel()
        self._socket.close()

    async def _all_exited(self, patience: float) -> bool:
        deadline = time.monotonic() + patience
        while any(worker.process is not None for worker in self.workers):
            self._exited.clear()
            try:
                await asyncio.wait_for(self._exited.wait(), deadline - time.monotonic())
            except TimeoutError:
                return False
        return True

    def _bind(self, run_dir: Path) -> str:
        socket = self._socket.socket
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        if self._settings.link != "ipc":
            address = Address.parse(self._settings.link.removeprefix("tcp://"))
            try:
                socket.bind(f"tcp://{address}" if address.port else f"tcp://{address.host}:*")
            except zmq.ZMQError as error:
                self._socket.close()
                raise StartError(f"can't listen on the link {self._settings.link}: {error}") from None
            return socket.getsockopt_string(zmq.LAST_ENDPOINT)
        path = str(run_dir / "link.sock")
        if len(path) > 100:  # the kernel's limit is 107 characters
            self._socket.close()
            raise StartError(f"the run directory's path is too long for a socket: {path}")
        socket.bind(f"ipc://{path}")
        return f"ipc://{path}"

    # Processes

    def _new_downlink(self, index: int, incarnation: int) -> Downlink:
        settings = self._settings
        return Downlink(
            index,
            incarnation,
            epoch=self._epoch,
            heartbeat=settings.heartbeat,
            liveness=settings.liveness,
            grace=settings.orphan_grace,
        )

    def _spawn(self, worker: Worker) -> None:
        settings, index = self._settings, worker.index
        address = self._listen
        if not settings.share_port and address.port:
            address = Address(address.host, address.port + index)
        arguments = [
            f"--coordinator={self._endpoint}",
            f"--index={index}",
            f"--incarnation={worker.downlink.incarnation}",
            f"--listen={address}",
            "--share-port" if settings.share_port else "--own-port",
            f"--grace={settings.orphan_grace}",
            f"--log-level={settings.log_level}",
            f"--log-format={settings.log_format}",
        ]
        if settings.pin:
            arguments.append(f"--pin={index}")
        process = WorkerProcess(arguments, lambda code: self._on_exit(worker, process, code))
        worker.process = process
        worker.pid = process.pid

    def _on_exit(self, worker: Worker, process: WorkerProcess, code: int) -> None:
        process.join()
        worker.process = None
        self._lose(worker)
        self._exited.set()
        if self._stopping:
            return
        if not self._ready.done():
            self._ready.set_exception(
                WorkerBootError(
                    f"worker {worker.index} could not start ({describe_exit(code)})"
                    + ("; its own message is above" if code == EXIT_COULD_NOT_START else "")
                )
            )
            return
        now = time.monotonic()
        decision = worker.policy.died(booted=worker.booted, lived=now - process.started_at, now=now)
        match decision:
            case Restart(delay):
                log.warning(
                    "worker %d ended (%s); starting it again in %.1f s",
                    worker.index,
                    describe_exit(code),
                    delay,
                )
                worker.restart = self._loop.call_later(delay, self._restart, worker)
            case GiveUp(reason):
                worker.given_up = True
                log.error("worker %d is given up: %s", worker.index, reason)
        self.on_change(worker)

    def _restart(self, worker: Worker) -> None:
        worker.restart = None
        worker.downlink = self._new_downlink(worker.index, worker.downlink.incarnation + 1)
        worker.booted = False
        worker.address = ""
        self._spawn(worker)
        self.on_change(worker)

    def _lose(self, worker: Worker) -> None:
        """Nothing will come of this incarnation any more: its participants are lost."""
        worker.downlink.gone()
        self._by_identity.pop(worker.identity, None)
        worker.orders.clear()
        members = list(worker.members.values())
        worker.members.clear()
        for member in members:
            self.dispatcher.ended(member)
        self.dispatcher.settle()

    # From the links

    def _on_message(self, frames: list[Buffer]) -> None:
        identity = bytes(frames[0])
        try:
            message = link_pb2.Upward.FromString(bytes(frames[1]) if len(frames) > 1 else b"\xff")
            answers = unpack(frames[2:], message.report.answer_sizes)
        except (DecodeError, MalformedFramesError) as error:
            log.warning("ignored a message on the link that can't be read: %s", error)
            return
        if message.HasField("hello"):
            worker = self._greet(identity, message.hello)
        else:
            worker = self._by_identity.get(identity)
            if worker is None:
                self._answer(identity, link_pb2.Downward(epoch=self._epoch, identify=link_pb2.Identify()))
        if worker is None:
            return
        for event in worker.downlink.received(message, time.monotonic()):
            self._handle(worker, event, answers)
        self._transmit(worker)

    def _greet(self, identity: bytes, hello: link_pb2.Hello) -> Worker | None:
        """Whose Hello it is; None if it was refused."""
        worker = self.workers[hello.worker] if hello.worker < len(self.workers) else None
        reason = "there is no such worker" if worker is None else worker.downlink.refuses(hello)
        if worker is None or reason is not None:
            log.warning("refused a hello of worker %d: %s", hello.worker, reason)
            refusal = link_pb2.Refusal(reason=reason or "")
            self._answer(identity, link_pb2.Downward(epoch=self._epoch, refusal=refusal))
            return None
        worker.identity = identity
        self._by_identity[identity] = worker
        return worker

    def _handle(self, worker: Worker, event: Event, answers: list[Buffer]) -> None:
        match event:
            case Reported(report):
                self._report(worker, report, answers)
            case Beat(heartbeat):
                worker.heartbeat = heartbeat
            case Greeted(hello):
                self._adopt(worker, hello)
            case Departed(reason):
                log.info("worker %d says goodbye: %s", worker.index, reason)
                self._lose(worker)
            case Silent(seconds):
                log.error("worker %d has been silent for %.1f s; it is killed", worker.index, seconds)
                self._lose(worker)
                if worker.process is not None:
                    worker.process.kill()

    def _report(self, worker: Worker, report: link_pb2.Report, answers: list[Buffer]) -> None:
        dispatcher, members = self.dispatcher, worker.members
        for join in report.joins:
            self._join(worker, join)
        answered, get = dispatcher.calls.answered, members.get
        for session, tag, answer in zip(report.answer_sessions, report.answer_tags, answers, strict=True):
            member = get(session)
            if member is not None:
                answered(member, tag, answer)
        for session in report.end_sessions:
            member = members.pop(session, None)
            if member is not None:
                dispatcher.ended(member)
        dispatcher.settle()

    def _join(self, worker: Worker, join: link_pb2.Join) -> Member:
        member = Member(
            key=self.dispatcher.new_key(),
            participant_id=join.participant_id,
            attributes=dict(join.attributes),
            worker=worker.index,
            session=join.session,
            peer=join.peer,
            accepts_cancel=join.accepts_cancel,
            joined_at=time.monotonic(),
        )
        worker.members[join.session] = member
        self.dispatcher.joined(member)
        return member

    def _adopt(self, worker: Worker, hello: link_pb2.Hello) -> None:
        """Makes what is known of the worker's sessions agree with what it says it has."""
        calls = self.dispatcher.calls
        said = {join.session: join for join in hello.sessions}
        for session, member in list(worker.members.items()):
            if session not in said:
                del worker.members[session]
                self.dispatcher.ended(member)
        for session, join in said.items():
            member = worker.members.get(session) or self._join(worker, join)
            calls.found(member, join.tag)
        self.dispatcher.settle()
        worker.pid, worker.address = hello.pid, hello.address
        first, worker.booted = not worker.booted, True
        if first:
            log.info("worker %d is up at %s (pid %d)", worker.index, hello.address, hello.pid)
        if not self._ready.done() and all(worker.booted for worker in self.workers):
            self._ready.set_result(None)
        self.on_change(worker)

    async def _tick(self) -> None:
        """Beats the heart, and notices whose has stopped, from the loop that does the work."""
        while True:
            await asyncio.sleep(self._settings.heartbeat / 2)
            now = time.monotonic()
            for worker in self.workers:
                for event in worker.downlink.tick(now):
                    self._handle(worker, event, [])
                self._transmit(worker)

    # To the links (Transport)

    def instruct(self, member: Member, tag: int, payload: bytes) -> None:
        self.workers[member.worker].orders.instruct(member.session, tag, payload)
        if not self._flush_scheduled:
            self._schedule_flush()

    def cancel(self, member: Member, tag: int) -> None:
        self.workers[member.worker].orders.cancel(member.session, tag)
        self._schedule_flush()

    def end(self, member: Member) -> None:
        worker = self.workers[member.worker]
        worker.members.pop(member.session, None)
        worker.orders.end(member.session)
        self._schedule_flush()

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        for worker in self.workers:
            if worker.orders:
                orders, payloads = worker.orders.take()
                worker.downlink.orders(orders, payloads)
                self._transmit(worker)

    def _transmit_all(self) -> None:
        for worker in self.workers:
            self._transmit(worker)

    def _transmit(self, worker: Worker) -> None:
        out = worker.downlink.out
        for frames in out:
            self._socket.send([worker.identity, *frames])
        out.clear()

    def _answer(self, identity: bytes, message: link_pb2.Downward) -> None:
        self._socket.send([identity, message.SerializeToString()])
