"""What the dispatcher wants, on its way to the workers: gathered, and sent once per turn of the loop.

Decides what goes to many at once. What has to be sent again is the business of the links (downlink.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from coordinator.workers.downlink import Downlink, State
from coordinator.workers.orders import OrdersBatch
from manager.core.call import Call, Send
from manager.core.members import Member
from manager.core.roster import Roster
from manager.payloads.blobs import Payload, view_of
from manager.payloads.memory import Memory
from protos import link_pb2


@dataclass(eq=False)
class Worker:
    """What is known of the worker in a slot. Each incarnation has a Downlink of its own."""

    index: int
    downlink: Downlink
    pid: int = 0
    identity: bytes = b""
    address: str = ""
    members: dict[int, Member] = field(default_factory=dict)  # by session
    orders: OrdersBatch = field(default_factory=OrdersBatch)
    heartbeat: link_pb2.Heartbeat = field(default_factory=link_pb2.Heartbeat)
    memory_pid: int = 0  # whose descriptors its payloads are named by
    capacity: int = 0  # participants that it may have
    drain_until: float | None = None  # monotonic; it has been told to drain, and lets nobody in any more
    refused_before: Counter[str] = field(default_factory=Counter)  # by earlier incarnations

    @property
    def lets_in(self) -> bool:
        """Whether participants can join there."""
        return self.downlink.state is State.OPEN and self.drain_until is None

    @property
    def drains(self) -> bool:
        """Whether it has been told to drain, and hasn't gone yet."""
        return self.downlink.state is State.OPEN and self.drain_until is not None

    @property
    def refused(self) -> Counter[str]:
        """Whom the workers in this slot have refused, by cause, so far."""
        return self.refused_before + Counter(self.heartbeat.refused)


class LinkTransport:
    """Transport of the coordinator's dispatcher."""

    def __init__(self, workers: Sequence[Worker], transmit: Callable[[Worker], None]) -> None:
        """``transmit`` sends what a worker's downlink has to be sent."""
        self.workers = workers
        self.memory = Memory()
        self._transmit = transmit
        self._loop = asyncio.get_running_loop()
        self._flush_scheduled = False

    def keep(self, instruction: bytes) -> Payload:
        return self.memory.share(instruction)

    def instruct(self, sends: Sequence[Send]) -> None:
        workers = self.workers
        for send in sends:
            members = send.members
            if len(members) == 1 and send.call is None:
                workers[members[0].worker].orders.instruct(members[0].session, send.tag, send.payload)
                continue
            roster = members if isinstance(members, Roster) else Roster(members)
            for index, (_, there) in roster.shares.items():
                sessions = roster.prepared.get(index)
                if sessions is None:  # packed once for all calls to this cohort
                    sessions = link_pb2.Broadcast(sessions=[member.session for member in there])
                    roster.prepared[index] = sessions
                workers[index].orders.broadcast(send, sessions)
        self.schedule()

    def cancel(self, member: Member, tag: int) -> None:
        self.workers[member.worker].orders.cancel(member.session, tag)
        self.schedule()

    def close_batch(self, worker: int, call: Call) -> None:
        self.workers[worker].orders.close(call.id)
        self.schedule()

    def end(self, member: Member) -> None:
        self.workers[member.worker].orders.end(member.session)
        self.schedule()

    def drain(self, worker: Worker, grace: float) -> None:
        """Tells it to drain, after all that it has been given to do before."""
        self._flush()
        worker.downlink.drain(grace)
        self._transmit(worker)

    def schedule(self) -> None:
        """Orders have been added: they go out with this turn of the loop."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        for worker in self.workers:
            if worker.orders:
                orders, payloads = worker.orders.take()
                if payloads and not worker.heartbeat.shares_memory:
                    payloads = [view_of(payload) for payload in payloads]
                worker.downlink.orders(orders, payloads)
                self._transmit(worker)
