"""What the dispatcher makes of sessions of one participant, in whatever order it hears of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from typing import Any

import pytest

from manager.core.call import Call, OutcomeKind, Send
from manager.core.dispatcher import Dispatcher
from manager.core.members import Member
from manager.core.pool import Grant
from manager.errors import Closed
from manager.payloads.blobs import Payload


class Ends:
    """A transport that notes whose streams are to be ended, and where instructions go."""

    def __init__(self) -> None:
        self.ended: list[Member] = []
        self.sent: list[tuple[int, int]] = []

    def keep(self, instruction: bytes) -> Payload:
        return instruction

    def instruct(self, sends: Sequence[Send]) -> None:
        self.sent += [(member.worker, member.session) for send in sends for member in send.members]

    def cancel(self, member: Member, tag: int) -> None:
        pass

    def close_batch(self, worker: int, call: Call) -> None:
        pass

    def end(self, member: Member) -> None:
        self.ended.append(member)


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


def session(key: int, joined_at: float, worker: int = 0, name: str = "a") -> Member:
    return Member(key, name, {}, worker, session=key, joined_at=joined_at)


@on_a_loop
async def test_of_two_sessions_the_one_that_joined_later_stays_whichever_is_heard_of_first() -> None:
    for order in ([1, 2], [2, 1]):
        transport = Ends()
        dispatcher = Dispatcher(transport)
        older, newer = session(1, joined_at=10.0), session(2, joined_at=11.0, worker=1)
        for key in order:
            dispatcher.joined(older if key == 1 else newer)
        assert list(dispatcher.pool) == [newer]
        assert transport.ended == [older]
        dispatcher.ended(older)
        assert list(dispatcher.pool) == [newer]
        dispatcher.close()


@on_a_loop
async def test_an_older_session_that_is_heard_of_late_is_no_return_of_one_that_moves() -> None:
    transport = Ends()
    dispatcher = Dispatcher(transport)
    member = session(1, joined_at=11.0)
    dispatcher.joined(member)
    dispatcher.moved(member)
    call = dispatcher.start_call([member], [b"x"], timeout=None, quorum=None)
    late = session(2, joined_at=10.0, worker=1)
    assert dispatcher.returned(late) is None
    dispatcher.joined(late)
    assert transport.ended == [late]
    dispatcher.ended(late)
    back = session(3, joined_at=12.0, worker=2)
    assert dispatcher.returned(back) is member
    dispatcher.settle()
    assert transport.sent == [(2, 3)]
    assert call.outcomes == [None]
    dispatcher.close()
    assert call.outcomes == [(OutcomeKind.LOST, b"")]


@on_a_loop
async def test_who_moves_makes_nobody_look_through_all_participants_again() -> None:
    """Thousands move at once, in one report, while somebody waits for a lease."""
    transport = Ends()
    dispatcher = Dispatcher(transport)
    members = [session(key, joined_at=1.0, name=f"p{key}") for key in range(1, 51)]
    for member in members:
        dispatcher.joined(member)
    waiting = asyncio.ensure_future(dispatcher.acquire(100, None, {}, None, exclusive=True))
    await asyncio.sleep(0)
    dispatcher.settle()
    looks = 0
    serve = dispatcher.pool.serve

    def counted(now: float) -> list[Grant]:
        nonlocal looks
        looks += 1
        return serve(now)

    dispatcher.pool.serve = counted  # type: ignore[method-assign]
    for member in members:
        dispatcher.moved(member)
    dispatcher.settle()
    assert looks == 1
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    dispatcher.close()


@on_a_loop
async def test_who_waits_for_participants_when_it_begins_to_drain_is_told_so() -> None:
    dispatcher = Dispatcher(Ends())
    asking = asyncio.create_task(dispatcher.acquire(1, None, {}, None, exclusive=True))
    await asyncio.sleep(0)
    dispatcher.drain()
    dispatcher.joined(session(1, joined_at=10.0))
    with pytest.raises(Closed, match="draining"):
        await asking
    assert (dispatcher.pool.waiting, dispatcher.pool.leased) == (0, 0)
