"""The coordinator's end of the links to all workers: its busiest shell.

Hands events across: from the links (downlink.py decides what a message means) to the dispatcher; the other
way is transport.py's. Watches who lives, and evens out the pool. The processes are supervisor.py's business.
Payloads pass through unparsed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from coordinator.settings import Settings
from coordinator.workers.balance import Balance, surplus
from coordinator.workers.downlink import Beat, Departed, Downlink, Event, Greeted, Reported, Silent, State
from coordinator.workers.draining import Draining
from coordinator.workers.router import Payloads, Router
from coordinator.workers.run_dir import RunDir
from coordinator.workers.transport import LinkTransport, Worker
from manager.core.dispatcher import Dispatcher
from manager.core.members import Member, printable, recognisable
from manager.limits import moves_per_second
from manager.link.keys import coordinator_keys
from manager.link.sockets import routing_id
from manager.listen import Address
from manager.logs import Sparingly
from manager.payloads.blobs import Blob, Payload, Sample, can_open, open_all
from manager.reducing.shares import Folded, Group, Partial
from manager.serving.admission import Admission
from manager.serving.refused import Cause, Refused
from protos import link_pb2

log = logging.getLogger("muster.coordinator")

CALL_INTERVAL = 0.05
"""Seconds between two calls for a worker that is adopted: it has to connect first."""

BALANCE_DELAY = (0.05, 0.35)
"""Seconds after which a participant that is moved comes back: a random time in this range."""


class Workers:
    """All workers of a coordinator. Listener of its supervisor."""

    def __init__(self, settings: Settings, run_dir: RunDir, epoch: int) -> None:
        self._settings = settings
        self._epoch = epoch
        self._loop = asyncio.get_running_loop()
        self._by_identity: dict[bytes, Worker] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._sparingly = Sparingly(log)
        self._sample = Sample()
        keys = None if settings.link_keys is None else coordinator_keys(settings.link_keys)
        self.workers = [Worker(index, self._new_downlink(index, 0)) for index in range(settings.workers)]
        self._transport = LinkTransport(self.workers, self._transmit)
        self.dispatcher = Dispatcher(self._transport, first_tag=epoch)
        self.dispatcher.max_message = settings.limits.max_message
        self.dispatcher.reducers = settings.reducers
        self.draining = Draining(
            self.workers,
            self.dispatcher,
            self._transport,
            settings.orphan_grace,
            share_port=settings.share_port,
        )
        pool, limits = self.dispatcher.pool, settings.limits
        pool.returns_per_second = moves_per_second(limits.max_joins)
        pool.return_time_anew = max(pool.return_time_anew, limits.come_back[1] + pool.return_time)
        self.on_booted: Callable[[int], None] = lambda index: None
        self.on_departed: Callable[[int], None] = lambda index: None
        self.on_silent: Callable[[int], None] = lambda index: None
        """Called with the index of a worker that has to be killed."""
        self.settled: Callable[[], bool] = lambda: True
        """Whether the workers are as they should be, so that participants may be evened out."""
        self._refused: Refused = Counter()  # by the coordinator itself
        self._admission = Admission(
            capacity=0,
            max_joins=settings.limits.max_joins * settings.workers,
            come_back=settings.limits.come_back,
            refused=self._refused,
            random=random.random,
            now=time.monotonic(),
        )
        self._balance = Balance()
        self._router = Router(settings.link, run_dir.socket, self._on_message, keys)
        self.endpoint = self._router.endpoint

    def open(self) -> None:
        """Begins to listen to workers, and to watch them."""
        self._router.start()
        self._ticker = self._loop.create_task(self._tick())

    @property
    def refused(self) -> Counter[str]:
        """Participants, streams and connections that couldn't stay, so far."""
        return sum((worker.refused for worker in self.workers), Counter(self._refused))

    @property
    def link_errors(self) -> int:
        """Messages on the link that could not be read, hellos and peers that were refused, so far."""
        return self._router.errors

    async def close(self) -> None:
        """Ends what still runs; the workers have exited."""
        self.dispatcher.close()
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker
        self._router.close()

    def _new_downlink(self, index: int, incarnation: int) -> Downlink:
        settings = self._settings
        return Downlink(
            index,
            incarnation,
            epoch=self._epoch,
            heartbeat=settings.heartbeat,
            liveness=settings.liveness,
            grace=settings.orphan_grace,
            memory=self._sample.message(),
        )

    # From the supervisor

    def adopting(self, index: int, incarnation: int, pid: int) -> None:
        """A worker of an earlier life is there: it is called, for it would wait for its next heartbeat."""
        self.starting(index, incarnation, pid)
        self._call(self.workers[index].downlink, routing_id(index, incarnation, pid))

    def _call(self, downlink: Downlink, identity: bytes) -> None:
        if downlink.state is State.AWAITED:
            identify = link_pb2.Downward(epoch=self._epoch, identify=link_pb2.Identify())
            self._router.answer(identity, identify)
            self._loop.call_later(CALL_INTERVAL, self._call, downlink, identity)

    def starting(self, index: int, incarnation: int, pid: int) -> None:
        worker = self.workers[index]
        worker.downlink = self._new_downlink(index, incarnation)
        worker.pid, worker.address = pid, ""
        worker.refused_before = worker.refused
        worker.heartbeat = link_pb2.Heartbeat()
        worker.drain_until = None

    def drain(self, index: int, grace: float) -> bool:
        return self.draining.drain(self.workers[index], grace)

    def ended(self, index: int) -> None:
        worker = self.workers[index]
        self._by_identity.pop(worker.identity, None)
        self._lose(worker)

    def _lose(self, worker: Worker) -> None:
        """Nothing will come of this incarnation any more: its participants are lost."""
        worker.downlink.gone()
        worker.orders.clear()
        members = list(worker.members.values())
        worker.members.clear()
        for member in members:
            self.dispatcher.ended(member)
        self.draining.look_for_room()
        self.dispatcher.worker_lost(worker.index)

    # From the links

    def _on_message(self, identity: bytes, message: link_pb2.Upward, payloads: Payloads) -> None:
        if message.HasField("hello"):
            worker = self._greet(identity, message.hello)
        else:
            worker = self._by_identity.get(identity)
            if worker is None:
                identify = link_pb2.Downward(epoch=self._epoch, identify=link_pb2.Identify())
                self._router.answer(identity, identify)
        if worker is None:
            return
        if message.HasField("hello") and worker.downlink.begins(message.hello):
            self.dispatcher.settle()  # within the old handshake; what is lost there is found missing
            worker.orders.clear()
        for event in worker.downlink.received(message, time.monotonic()):
            self._handle(worker, event, payloads)
        self._transmit(worker)

    def _greet(self, identity: bytes, hello: link_pb2.Hello) -> Worker | None:
        """Whose Hello it is; None if it was refused."""
        worker = self.workers[hello.worker] if hello.worker < len(self.workers) else None
        reason = "there is no such worker" if worker is None else worker.downlink.refuses(hello)
        if worker is None or reason is not None:
            self._router.complain("refused", f"refused a hello of worker {hello.worker}: {reason}")
            refusal = link_pb2.Refusal(reason=reason or "")
            self._router.answer(identity, link_pb2.Downward(epoch=self._epoch, refusal=refusal))
            return None
        if identity != worker.identity and not worker.downlink.begins(hello):
            self._router.complain("repeated", f"ignored a hello of worker {hello.worker} that was repeated")
            return None
        worker.downlink.opens_memory = can_open(hello.memory)
        worker.memory_pid = hello.memory.pid
        self._by_identity.pop(worker.identity, None)
        worker.identity = identity
        self._by_identity[identity] = worker
        return worker

    def _handle(self, worker: Worker, event: Event, payloads: Payloads) -> None:
        match event:
            case Reported(report):
                self._report(worker, report, payloads)
            case Beat(heartbeat):
                worker.heartbeat = heartbeat
            case Greeted(hello):
                self._adopt(worker, hello)
            case Departed(reason):
                log.info("worker %d says goodbye: %s", worker.index, reason)
                self._transmit(worker)  # it waits for the acknowledgement
                self._lose(worker)
                self.on_departed(worker.index)
            case Silent(seconds):
                log.error("worker %d has been silent for %.1f s; it is killed", worker.index, seconds)
                self._lose(worker)
                self.on_silent(worker.index)

    def _report(self, worker: Worker, report: link_pb2.Report, payloads: Payloads) -> None:
        dispatcher, members = self.dispatcher, worker.members
        opened = cast(list[Payload | None], payloads)
        if report.payloads.shared:
            opened = open_all(payloads, worker.memory_pid, f"worker {worker.index}")
            worker.downlink.acknowledge()  # the worker keeps the memory until then
        if report.leaving:
            self.draining.let_go(worker)
        for join in report.joins:
            if not self._turn_away(worker, join):
                self._join(worker, join)
        if report.answer_sessions:
            # The answers are the first of the payloads.
            if report.payloads.shared:
                _spare_descriptors(map(members.get, report.answer_sessions), opened)
            answering = map(members.get, report.answer_sessions)
            dispatcher.answered(zip(answering, report.answer_tags, opened, strict=False))
        for each in report.folded:
            folded = Folded(each.batch, each.part, each.sessions, each.bytes, each.tag)
            dispatcher.folded(worker.index, folded, members)
        for one in report.partials:
            groups = [Group(group.schema, group.sessions, opened[group.payload]) for group in one.groups]
            partial = Partial(one.batch, one.part, groups, one.closed, one.error, one.given_up)
            dispatcher.partial(worker.index, partial)
        for session, reason in zip(report.end_sessions, report.end_reasons, strict=True):
            member = members.pop(session, None)
            if member is None:
                continue
            if reason == link_pb2.MOVED and recognisable(member.participant_id):
                dispatcher.moved(member)
            else:
                dispatcher.ended(member)
        if link_pb2.MOVED in report.end_reasons:
            worker.downlink.acknowledge()  # they are told to go once that is known

    def _join(self, worker: Worker, join: link_pb2.Join) -> Member:
        newcomer = Member(
            key=self.dispatcher.new_key(),
            participant_id=join.participant_id,
            attributes=dict(join.attributes),
            worker=worker.index,
            session=join.session,
            peer=join.peer,
            accepts_cancel=join.accepts_cancel,
            joined_at=join.joined_at,
        )
        member = self.dispatcher.returned(newcomer, join.tag)
        if member is None:
            member = newcomer
            self.dispatcher.joined(member)
            if join.tag:
                self.dispatcher.found(member, join.tag)
        worker.members[join.session] = member
        return member

    def _turn_away(self, worker: Worker, join: link_pb2.Join) -> bool:
        """Whether there is no room for it; it is then told when to come back."""
        limit, pool = self._settings.max_participants, self.dispatcher.pool
        if limit is None or len(pool) + pool.moving < limit or pool.knows(join.participant_id):
            return False
        delay = self._admission.full(time.monotonic(), Cause.MAX_PARTICIPANTS)
        self._sparingly.info(
            "full",
            "participant %s is turned away: there are %d already, as many as --max-participants allows",
            printable(join.participant_id),
            limit,
        )
        worker.orders.move([join.session], delay, delay)
        self._transport.schedule()
        return True

    def _adopt(self, worker: Worker, hello: link_pb2.Hello) -> None:
        """Makes what is known of the worker's sessions agree with what it says it has."""
        # Orders on their way to the old handshake will not be obeyed; what they were for is found missing.
        self.dispatcher.settle()
        worker.orders.clear()
        self.dispatcher.worker_lost(worker.index)  # it has forgotten its batches
        said = {join.session: join for join in hello.sessions}
        for session, member in list(worker.members.items()):
            if session not in said:
                del worker.members[session]
                self.dispatcher.ended(member)
        for session, join in said.items():
            known = worker.members.get(session)
            if known is None:
                self._join(worker, join)
                continue
            self.dispatcher.found(known, join.tag)
            if known.gone:  # a newer session has taken its place; the order to end it may be lost
                self._transport.end(known)
        if not worker.address:
            if worker.downlink.incarnation > 1:
                self._balance.restarted(time.monotonic())
            log.info("worker %d is up at %s (pid %d)", worker.index, hello.address, hello.pid)
        worker.pid, worker.address, worker.capacity = hello.pid, hello.address, hello.capacity
        self.on_booted(worker.index)
        self.draining.greeted(worker, leaving=hello.leaving)

    async def _tick(self) -> None:
        """Beats the heart, and notices whose has stopped, from the loop that does the work."""
        while True:
            await asyncio.sleep(self._settings.heartbeat / 2)
            now = time.monotonic()
            self._transport.memory.forget()
            for worker in self.workers:
                try:
                    for event in worker.downlink.tick(now):
                        self._handle(worker, event, [])
                    self._transmit(worker)
                except Exception:  # must cost no other worker its heartbeats
                    self._sparingly.exception(
                        "tick", "the link to worker %d could not be served", worker.index
                    )
            try:
                self.draining.tick()
                if self._balance.due(now):
                    self._even_out()
            except Exception:
                self._sparingly.exception("balance", "the participants could not be evened out")

    def _even_out(self) -> None:
        """Moves a few idle participants away from workers that have too many."""
        up = [worker for worker in self.workers if worker.lets_in]
        if self.dispatcher.draining or not self.settled() or len(up) < 2:
            return
        address = ""
        if not self._settings.share_port:  # they would come back to the same worker
            address = min(up, key=lambda worker: len(worker.members)).address
            if Address.parse(address).host in ("0.0.0.0", "::"):  # noqa: S104 - nobody can be sent there
                return
        moving = self.dispatcher.pool.moving
        moves = surplus({worker.index: len(worker.members) for worker in up}, moving)
        for index, number in moves.items():
            worker = self.workers[index]
            idle = [
                session
                for session, member in worker.members.items()
                if not member.busy and recognisable(member.participant_id)
            ]
            chosen = random.sample(idle, min(number, len(idle)))
            worker.orders.move(chosen, *BALANCE_DELAY, address=address)
            log.debug("worker %d has too many participants: %d of them are moved", index, len(chosen))
        self._balance.uneven = bool(moves)
        if moves:
            self._transport.schedule()

    def _transmit(self, worker: Worker) -> None:
        out = worker.downlink.out
        for frames in out:
            self._router.send(worker.identity, frames)
        out.clear()


def _spare_descriptors(members: Iterable[Member | None], answers: Sequence[Payload | None]) -> None:
    """Of the answers that stay in this process only the content is kept: descriptors are few."""
    for member, answer in zip(members, answers, strict=False):
        stays = member is not None and member.call is not None and not member.call.stream
        if stays and isinstance(answer, Blob):
            answer.settle()
