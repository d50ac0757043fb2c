"""Participants have one proxy each, whoever asks for them meanwhile."""

from __future__ import annotations

import signal
from typing import Any

from manager.api.participants import Participants
from manager.api.proxy import Handle, ParticipantProxy
from manager.core.backend import Acquired
from manager.loop import LoopThread
from tests.manager.support import make_member


class Manager(Participants[ParticipantProxy]):
    """Of one member, whom everybody gets."""

    def __init__(self, factory: Any, loop: LoopThread) -> None:
        super().__init__(factory, loop)
        self._members = [make_member(1)]

    def _get_backend(self) -> Any:
        return self

    async def acquire(self, *_: object, **__: object) -> Acquired:
        return Acquired(1, self._members)


def test_a_signal_handler_may_ask_for_a_participant_whose_proxy_is_being_made() -> None:
    loop = LoopThread("test")
    made: list[ParticipantProxy] = []
    asked: list[ParticipantProxy] = []

    def make(handle: Handle) -> ParticipantProxy:
        proxy = ParticipantProxy(handle)
        made.append(proxy)
        if len(made) == 1:
            signal.raise_signal(signal.SIGALRM)
        return proxy

    manager = Manager(make, loop)
    before = signal.signal(signal.SIGALRM, lambda *_: asked.extend(manager.get_participants(1)))
    try:
        (proxy,) = manager.get_participants(1)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(made) == 2
    assert asked == [proxy]
    assert list(manager.get_participants(1)) == [proxy]
    loop.close()
