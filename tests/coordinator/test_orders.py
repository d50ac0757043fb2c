"""The orders to a worker hold each payload once, and say which session gets which."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.workers.orders import OrdersBatch
from manager.core.call import Send
from manager.core.calls import CallTable
from manager.reducing.shares import Reduction, reduction_of
from protos import link_pb2
from protos.frames import OWN_FRAME, check_orders, pack, unpack
from tests.manager.support import make_member


def to(sessions: Iterable[int]) -> link_pb2.Broadcast:
    """A broadcast with only the sessions filled in."""
    return link_pb2.Broadcast(sessions=sessions)


def test_a_new_batch_is_empty() -> None:
    batch = OrdersBatch()
    assert not batch
    assert batch.take() == (link_pb2.Orders(), [])


def test_each_kind_of_order_makes_it_worth_sending() -> None:
    instruct, broadcast, cancel, close, end = (OrdersBatch() for _ in range(5))
    instruct.instruct(1, 2, b"")
    broadcast.broadcast(Send(2, b"", [], None), to([1]))
    cancel.cancel(1, 2)
    close.close(1)
    end.end(1)
    assert instruct
    assert broadcast
    assert cancel
    assert close
    assert end


def test_a_broadcast_is_packed_once() -> None:
    batch = OrdersBatch()
    payload = bytes(OWN_FRAME)
    batch.broadcast(Send(1, payload, [], None), to(range(100)))
    for session in range(100, 200):  # those that were busy
        batch.instruct(session, session + 1, payload)
    orders, payloads = batch.take()
    assert orders.broadcasts == [link_pb2.Broadcast(tag=1, payload=0, sessions=range(100))]
    assert list(orders.instruct_payloads) == [0] * 100
    assert payloads == [payload]
    assert payloads[0] is payload


def test_the_sessions_of_a_broadcast_serve_the_next_one() -> None:
    batch, table = OrdersBatch(), CallTable()
    call = table.start([make_member(1), make_member(2)], [b"go"], quorum=1, reduction=Reduction("sum"))
    sessions = to([1, 2])
    batch.broadcast(Send(7, b"go", [], call, hurry=True), sessions)
    batch.broadcast(Send(8, b"on", [], None), sessions)
    assert sessions == to([1, 2]), "it is kept for all broadcasts to these"
    first, second = batch.take()[0].broadcasts
    assert (first.tag, first.batch, first.hurry) == (7, call.id, True)
    assert second == link_pb2.Broadcast(tag=8, payload=1, sessions=[1, 2])
    batch.broadcast(Send(9, b"", [], None), sessions)
    assert batch.take()[0].broadcasts == [link_pb2.Broadcast(tag=9, payload=0, sessions=[1, 2])]


@pytest.mark.parametrize("quorum", [None, 1])
def test_a_broadcast_of_a_reducing_call_says_into_what_results_are_folded_and_how(
    quorum: int | None,
) -> None:
    batch, table = OrdersBatch(), CallTable()
    reduction = Reduction("sum", {"dtype": "float64"})
    call = table.start([make_member(1), make_member(2)], [b"go"], quorum=quorum, reduction=reduction)
    batch.broadcast(table.sends[0]._replace(tag=7), to([1, 2]))
    orders, payloads = batch.take()
    assert orders.broadcasts == [
        link_pb2.Broadcast(
            tag=7,
            payload=0,
            sessions=[1, 2],
            batch=call.id,
            reduction=reduction.message(),
            hurry=quorum is not None,
        )
    ]
    assert reduction_of(orders.broadcasts[0].reduction) == reduction
    assert payloads == [b"go"]


def test_taking_begins_a_new_batch() -> None:
    batch = OrdersBatch()
    batch.instruct(1, 2, b"a")
    batch.broadcast(Send(8, b"c", [], None), to([6, 7]))
    batch.cancel(3, 4)
    batch.close(9)
    batch.end(5)
    orders, payloads = batch.take()
    assert not batch
    batch.instruct(1, 9, b"b")
    assert orders == link_pb2.Orders(
        instruct_sessions=[1],
        instruct_tags=[2],
        instruct_payloads=[0],
        broadcasts=[link_pb2.Broadcast(tag=8, payload=1, sessions=[6, 7])],
        cancel_sessions=[3],
        cancel_tags=[4],
        close_batches=[9],
        end_sessions=[5],
    )
    assert payloads == [b"a", b"c"]


def test_clearing_drops_everything() -> None:
    batch = OrdersBatch()
    batch.instruct(1, 2, b"a")
    batch.broadcast(Send(8, b"c", [], None), to([6, 7]))
    batch.cancel(3, 4)
    batch.close(9)
    batch.end(5)
    batch.clear()
    assert not batch
    assert batch.take() == (link_pb2.Orders(), [])


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**64 - 1) | st.lists(st.integers(0, 2**64 - 1), max_size=3),
            st.integers(1, 2**64 - 1),
            st.integers(0, 3),
        ),
        max_size=15,
    )
)
def test_everyone_gets_their_own_instruction(instructions: list[tuple[int | list[int], int, int]]) -> None:
    payloads = [b"", b"short", bytes(OWN_FRAME), b"other"]
    batch = OrdersBatch()
    for whom, tag, which in instructions:
        if isinstance(whom, int):
            batch.instruct(whom, tag, payloads[which])
        else:
            batch.broadcast(Send(tag, payloads[which], [], None), to(whom))
    orders, to_send = batch.take()
    header, frames = pack(to_send)
    if header is not None:
        orders.payloads.CopyFrom(header)
    parsed = link_pb2.Orders.FromString(orders.SerializeToString())
    check_orders(parsed)
    found = unpack(frames, parsed.payloads)
    assert [
        (session, tag, found[index])
        for session, tag, index in zip(
            parsed.instruct_sessions, parsed.instruct_tags, parsed.instruct_payloads, strict=True
        )
    ] == [(whom, tag, payloads[which]) for whom, tag, which in instructions if isinstance(whom, int)]
    assert [
        (list(broadcast.sessions), broadcast.tag, found[broadcast.payload]) for broadcast in parsed.broadcasts
    ] == [(whom, tag, payloads[which]) for whom, tag, which in instructions if isinstance(whom, list)]
