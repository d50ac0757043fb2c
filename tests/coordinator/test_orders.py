"""The orders to a worker hold each payload once, and say which session gets which."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.orders import OrdersBatch
from manager.members import Member
from protos import link_pb2
from protos.frames import OWN_FRAME, check_orders, unpack
from tests.manager.support import make_member


def to(session: int, tag: int, payload: bytes) -> tuple[Member, int, bytes]:
    """An instruction as the table of calls notes it."""
    return make_member(session), tag, payload


def test_a_new_batch_is_empty() -> None:
    batch = OrdersBatch()
    assert not batch
    assert batch.take() == (link_pb2.Orders(), [])


def test_each_kind_of_order_makes_it_worth_sending() -> None:
    instruct, cancel, end = OrdersBatch(), OrdersBatch(), OrdersBatch()
    instruct.instruct(to(1, 2, b""))
    cancel.cancel(1, 2)
    end.end(1)
    assert instruct
    assert cancel
    assert end


def test_a_broadcast_is_packed_once() -> None:
    batch = OrdersBatch()
    payload = bytes(OWN_FRAME)
    for session in range(100):
        batch.instruct(to(session, session + 1, payload))
    orders, frames = batch.take()
    assert list(orders.payload_sizes) == [OWN_FRAME]
    assert list(orders.instruct_payloads) == [0] * 100
    assert frames == [b"", payload]


def test_taking_begins_a_new_batch() -> None:
    batch = OrdersBatch()
    batch.instruct(to(1, 2, b"a"))
    batch.cancel(3, 4)
    batch.end(5)
    orders, frames = batch.take()
    assert not batch
    batch.instruct(to(1, 9, b"b"))
    assert orders == link_pb2.Orders(
        payload_sizes=[1],
        instruct_sessions=[1],
        instruct_tags=[2],
        instruct_payloads=[0],
        cancel_sessions=[3],
        cancel_tags=[4],
        end_sessions=[5],
    )
    assert frames == [b"a"]


def test_clearing_drops_everything() -> None:
    batch = OrdersBatch()
    batch.instruct(to(1, 2, b"a"))
    batch.cancel(3, 4)
    batch.end(5)
    batch.clear()
    assert not batch
    assert batch.take() == (link_pb2.Orders(), [])


@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 2**64 - 1), st.integers(0, 3)), max_size=15)
)
def test_everyone_gets_their_own_instruction(instructions: list[tuple[int, int, int]]) -> None:
    payloads = [b"", b"short", bytes(OWN_FRAME), b"other"]
    batch = OrdersBatch()
    for session, tag, which in instructions:
        batch.instruct(to(session, tag, payloads[which]))
    orders, frames = batch.take()
    parsed = link_pb2.Orders.FromString(orders.SerializeToString())
    check_orders(parsed)
    found = [bytes(payload) for payload in unpack(frames, parsed.payload_sizes)]
    assert [
        (session, tag, found[index])
        for session, tag, index in zip(
            parsed.instruct_sessions, parsed.instruct_tags, parsed.instruct_payloads, strict=True
        )
    ] == [(session, tag, payloads[which]) for session, tag, which in instructions]
