"""Payloads come out of their frames as they went in; frames that don't fit their header are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import link_pb2
from protos.frames import (
    OWN_FRAME,
    Buffer,
    MalformedFramesError,
    check_orders,
    check_report,
    pack,
    unpack,
)

SIZES = st.integers(0, 40) | st.sampled_from([OWN_FRAME - 1, OWN_FRAME, OWN_FRAME + 1, 3 * OWN_FRAME])


def make_payloads(sizes: list[int]) -> list[bytes]:
    return [bytes([number % 251]) * size for number, size in enumerate(sizes, 1)]


@given(st.lists(SIZES, max_size=12), st.booleans())
def test_payloads_come_out_as_they_went_in(sizes: list[int], as_views: bool) -> None:
    payloads = make_payloads(sizes)
    frames = pack([memoryview(payload) for payload in payloads] if as_views else payloads)
    assert [bytes(payload) for payload in unpack(frames, sizes)] == payloads


def test_no_payloads_make_no_frames() -> None:
    assert pack([]) == []
    assert unpack([], []) == []


def test_small_payloads_share_one_frame() -> None:
    assert pack([b"a", b"", b"bc"]) == [b"abc"]


def test_large_payloads_are_not_copied() -> None:
    large = bytes(OWN_FRAME)
    frames = pack([b"a", large, b"b"])
    assert frames[0] == b"ab"
    assert frames[1] is large
    assert unpack(frames, [1, OWN_FRAME, 1])[1] is large


def test_a_large_payload_alone_comes_behind_an_empty_frame() -> None:
    assert pack([bytes(OWN_FRAME)]) == [b"", bytes(OWN_FRAME)]


def test_empty_payloads_are_payloads() -> None:
    assert unpack(pack([b"", b""]), [0, 0]) == [b"", b""]


@pytest.mark.parametrize(
    ("frames", "sizes"),
    [
        pytest.param([], [0], id="no frame"),
        pytest.param([b""], [], id="a frame too many for no payload"),
        pytest.param([b"ab"], [1], id="packed frame too long"),
        pytest.param([b"a"], [2], id="packed frame too short"),
        pytest.param([b"a"], [1, 1], id="a payload too few"),
        pytest.param([b""], [OWN_FRAME], id="no frame of its own"),
        pytest.param([bytes(OWN_FRAME)], [OWN_FRAME], id="the large one in the packed frame"),
        pytest.param([b"", bytes(OWN_FRAME)], [OWN_FRAME + 1], id="own frame too short"),
        pytest.param([b"", bytes(OWN_FRAME + 1)], [OWN_FRAME], id="own frame too long"),
        pytest.param([b"a", bytes(OWN_FRAME)], [1], id="an own frame too many"),
        pytest.param([b"", bytes(OWN_FRAME), bytes(OWN_FRAME + 1)], [OWN_FRAME + 1, OWN_FRAME], id="swapped"),
        pytest.param([b"", b"a"], [1], id="a small one in a frame of its own"),
        pytest.param([b"a"], [2**64 - 1], id="a size beyond all bounds"),
    ],
)
def test_frames_that_do_not_fit_are_refused(frames: list[Buffer], sizes: list[int]) -> None:
    with pytest.raises(MalformedFramesError):
        unpack(frames, sizes)


@given(st.lists(st.binary(max_size=30), max_size=4), st.lists(st.integers(0, 40), max_size=5))
def test_any_frames_fit_exactly_or_are_refused(frames: list[Buffer], sizes: list[int]) -> None:
    try:
        payloads = unpack(frames, sizes)
    except MalformedFramesError:
        return
    assert [len(payload) for payload in payloads] == sizes
    assert pack(payloads) == frames


@pytest.mark.parametrize(
    "orders",
    [
        link_pb2.Orders(instruct_sessions=[1], instruct_tags=[1]),
        link_pb2.Orders(
            payload_sizes=[1], instruct_sessions=[1, 2], instruct_tags=[1], instruct_payloads=[0]
        ),
        link_pb2.Orders(cancel_sessions=[1]),
        link_pb2.Orders(instruct_sessions=[1], instruct_tags=[1], instruct_payloads=[0]),
        link_pb2.Orders(payload_sizes=[1], instruct_sessions=[1], instruct_tags=[1], instruct_payloads=[1]),
    ],
    ids=["no payloads", "a tag too few", "a cancel without a tag", "no such payload", "one past the last"],
)
def test_orders_that_do_not_add_up_are_refused(orders: link_pb2.Orders) -> None:
    with pytest.raises(MalformedFramesError):
        check_orders(orders)


@pytest.mark.parametrize(
    "report",
    [
        link_pb2.Report(answer_sessions=[1], answer_tags=[1]),
        link_pb2.Report(answer_sizes=[1]),
        link_pb2.Report(end_sessions=[1]),
        link_pb2.Report(end_reasons=[link_pb2.LEFT]),
    ],
    ids=["no sizes", "no sessions", "no reason", "a reason for nobody"],
)
def test_reports_that_do_not_add_up_are_refused(report: link_pb2.Report) -> None:
    with pytest.raises(MalformedFramesError):
        check_report(report)


def test_what_adds_up_is_accepted() -> None:
    check_orders(link_pb2.Orders())
    check_orders(
        link_pb2.Orders(
            payload_sizes=[1], instruct_sessions=[1, 2], instruct_tags=[1, 2], instruct_payloads=[0, 0]
        )
    )
    check_report(link_pb2.Report())
    check_report(link_pb2.Report(answer_sessions=[1], answer_tags=[2], answer_sizes=[0]))
