"""Payloads come out of their frames as they went in; frames that don't fit their header are refused."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import link_pb2
from protos.frames import (
    OWN_FRAME,
    Buffer,
    MalformedFramesError,
    Shared,
    check_orders,
    check_report,
    pack,
    unpack,
)

LARGE = [OWN_FRAME, OWN_FRAME + 1, 3 * OWN_FRAME]
SIZES = st.integers(0, 40) | st.sampled_from([OWN_FRAME - 1, *LARGE])


class InMemory:
    """Stands for a payload in this process's memory."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        self._size = size

    def __len__(self) -> int:
        return self._size


def header(
    sizes: Iterable[int] = (), shared: Iterable[int] = (), descriptors: Iterable[int] = ()
) -> link_pb2.Payloads:
    return link_pb2.Payloads(sizes=sizes, shared=shared, descriptors=descriptors)


def make_payloads(sizes: list[int]) -> list[bytes]:
    return [bytes([number % 251]) * size for number, size in enumerate(sizes, 1)]


@given(st.lists(SIZES, max_size=12), st.booleans())
def test_payloads_come_out_as_they_went_in(sizes: list[int], as_views: bool) -> None:
    payloads = make_payloads(sizes)
    head, frames = pack([memoryview(payload) for payload in payloads] if as_views else payloads)
    assert (head or header()) == header(sizes)
    assert unpack(frames, header(sizes)) == payloads


@given(
    st.lists(SIZES | st.tuples(st.integers(1, 2**31 - 1), st.sampled_from(LARGE)), min_size=1, max_size=12)
)
def test_those_in_shared_memory_come_out_in_their_place(kinds: list[int | tuple[int, int]]) -> None:
    payloads: list[bytes | InMemory] = [
        InMemory(*kind) if isinstance(kind, tuple) else bytes([number % 251]) * kind
        for number, kind in enumerate(kinds, 1)
    ]
    head, frames = pack(payloads)
    assert head is not None
    parsed = link_pb2.Payloads.FromString(head.SerializeToString())
    assert list(parsed.sizes) == [len(payload) for payload in payloads]
    assert unpack(frames, parsed) == [
        Shared(payload.descriptor, len(payload)) if isinstance(payload, InMemory) else payload
        for payload in payloads
    ]


def test_no_payloads_make_no_frames() -> None:
    assert pack([]) == (None, [])
    assert unpack([], header()) == []


def test_small_payloads_share_one_frame() -> None:
    assert pack([b"a", b"", b"bc"]) == (header([1, 0, 2]), [b"abc"])


def test_large_payloads_are_not_copied() -> None:
    large = bytes(OWN_FRAME)
    head, frames = pack([b"a", large, b"b"])
    assert head == header([1, OWN_FRAME, 1])
    assert frames[0] == b"ab"
    assert frames[1] is large
    assert unpack(frames, head)[1] is large


def test_a_large_payload_alone_comes_behind_an_empty_frame() -> None:
    assert pack([bytes(OWN_FRAME)]) == (header([OWN_FRAME]), [b"", bytes(OWN_FRAME)])


def test_of_payloads_in_shared_memory_only_the_descriptors_travel() -> None:
    head, frames = pack([InMemory(7, OWN_FRAME), b"a", InMemory(9, OWN_FRAME + 1)])
    assert head == header([OWN_FRAME, 1, OWN_FRAME + 1], [0, 2], [7, 9])
    assert frames == [b"a"]
    assert pack([InMemory(7, OWN_FRAME)]) == (header([OWN_FRAME], [0], [7]), [b""])


def test_what_is_said_to_be_in_shared_memory_is_there_whatever_its_size() -> None:
    assert unpack([b"a"], header([3, 1], [0], [7])) == [Shared(7, 3), b"a"]


def test_empty_payloads_are_payloads() -> None:
    head, frames = pack([b"", b""])
    assert head == header([0, 0])
    assert unpack(frames, head) == [b"", b""]


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
        unpack(frames, header(sizes))


@pytest.mark.parametrize(
    ("frames", "head"),
    [
        pytest.param([], header([OWN_FRAME], [0], [7]), id="no frame"),
        pytest.param([b""], header([], [0], [7]), id="shared, but not listed"),
        pytest.param([b"", bytes(OWN_FRAME)], header([OWN_FRAME], [1], [7]), id="one past the last"),
        pytest.param([b""], header([OWN_FRAME, OWN_FRAME], [0], [7]), id="no frame for the one not shared"),
        pytest.param([b""], header([OWN_FRAME], [0], []), id="a descriptor too few"),
        pytest.param([b""], header([OWN_FRAME], [0], [7, 8]), id="a descriptor too many"),
        pytest.param([b""], header([OWN_FRAME], [0, 0], [7, 8]), id="one listed twice"),
        pytest.param([b""], header([OWN_FRAME], [0, 0], [7, 7]), id="one listed twice, and its descriptor"),
        pytest.param([b""], header([OWN_FRAME], [0, 0], [7]), id="one listed twice, with one descriptor"),
        pytest.param([b""], header([OWN_FRAME, OWN_FRAME], [0, 0], [7, 8]), id="one twice, another not"),
        pytest.param(
            [b"a"], header([1, OWN_FRAME], [1, 1], [7, 8]), id="one listed twice, beside a small one"
        ),
        pytest.param([b"", bytes(OWN_FRAME)], header([OWN_FRAME], [0], [7]), id="a frame for the shared one"),
        pytest.param([b"a"], header([OWN_FRAME], [0], [7]), id="packed frame too long"),
        pytest.param([b""], header([1, OWN_FRAME], [1], [7]), id="packed frame too short"),
    ],
)
def test_payloads_in_shared_memory_that_do_not_fit_are_refused(
    frames: list[Buffer], head: link_pb2.Payloads
) -> None:
    with pytest.raises(MalformedFramesError):
        unpack(frames, head)


@given(st.lists(st.binary(max_size=30), max_size=4), st.lists(st.integers(0, 40), max_size=5))
def test_any_frames_fit_exactly_or_are_refused(frames: list[Buffer], sizes: list[int]) -> None:
    try:
        payloads = unpack(frames, header(sizes))
    except MalformedFramesError:
        return
    plain = [payload for payload in payloads if not isinstance(payload, Shared)]
    assert [len(payload) for payload in plain] == sizes
    assert pack(plain) == (header(sizes) if sizes else None, frames)


@given(
    st.lists(st.binary(max_size=3) | st.sampled_from([bytes(size) for size in LARGE]), max_size=3),
    st.lists(st.integers(0, 3) | st.sampled_from(LARGE), max_size=4),
    st.lists(st.integers(0, 4), max_size=3),
    st.lists(st.integers(1, 9), max_size=3),
)
def test_any_frames_with_any_header_fit_exactly_or_are_refused(
    frames: list[Buffer], sizes: list[int], shared: list[int], descriptors: list[int]
) -> None:
    try:
        payloads = unpack(frames, header(sizes, shared, descriptors))
    except MalformedFramesError:
        return
    if not sizes:
        assert (frames, payloads) == ([], [])
        return
    by_place = dict(zip(shared, descriptors, strict=True))
    own = [payload for payload in payloads if not isinstance(payload, Shared)]
    assert [p.size if isinstance(p, Shared) else len(p) for p in payloads] == sizes
    assert {
        place: payload.descriptor for place, payload in enumerate(payloads) if isinstance(payload, Shared)
    } == by_place
    assert pack(own)[1] == frames or not own


@pytest.mark.parametrize(
    "orders",
    [
        link_pb2.Orders(instruct_sessions=[1], instruct_tags=[1]),
        link_pb2.Orders(
            payloads=header([1]), instruct_sessions=[1, 2], instruct_tags=[1], instruct_payloads=[0]
        ),
        link_pb2.Orders(cancel_sessions=[1]),
        link_pb2.Orders(instruct_sessions=[1], instruct_tags=[1], instruct_payloads=[0]),
        link_pb2.Orders(
            payloads=header([1]), instruct_sessions=[1], instruct_tags=[1], instruct_payloads=[1]
        ),
        link_pb2.Orders(broadcasts=[link_pb2.Broadcast(tag=1, sessions=[1])]),
        link_pb2.Orders(payloads=header([1]), broadcasts=[link_pb2.Broadcast(tag=1, payload=1)]),
    ],
    ids=[
        "no payloads",
        "a tag too few",
        "a cancel without a tag",
        "no such payload",
        "one past the last",
        "a broadcast without a payload",
        "a broadcast of one past the last",
    ],
)
def test_orders_that_do_not_add_up_are_refused(orders: link_pb2.Orders) -> None:
    with pytest.raises(MalformedFramesError):
        check_orders(orders)


@pytest.mark.parametrize(
    "report",
    [
        link_pb2.Report(answer_sessions=[1], answer_tags=[1]),
        link_pb2.Report(payloads=header([1]), answer_sessions=[1, 2], answer_tags=[1, 2]),
        link_pb2.Report(payloads=header([1]), answer_tags=[1]),
        link_pb2.Report(end_sessions=[1]),
        link_pb2.Report(end_reasons=[link_pb2.LEFT]),
        link_pb2.Report(partials=[link_pb2.Partial(batch=1, groups=[link_pb2.Group(schema="[]")])]),
        link_pb2.Report(
            payloads=header([1]), partials=[link_pb2.Partial(batch=1, groups=[link_pb2.Group(payload=1)])]
        ),
    ],
    ids=[
        "no sizes",
        "a size too few",
        "no sessions",
        "no reason",
        "a reason for nobody",
        "a group without a state",
        "a group of one past the last",
    ],
)
def test_reports_that_do_not_add_up_are_refused(report: link_pb2.Report) -> None:
    with pytest.raises(MalformedFramesError):
        check_report(report)


def test_what_adds_up_is_accepted() -> None:
    check_orders(link_pb2.Orders())
    check_orders(
        link_pb2.Orders(
            payloads=header([1]),
            instruct_sessions=[1, 2],
            instruct_tags=[1, 2],
            instruct_payloads=[0, 0],
            broadcasts=[link_pb2.Broadcast(tag=3, payload=0, sessions=[3, 4])],
        )
    )
    check_report(link_pb2.Report())
    check_report(link_pb2.Report(payloads=header([0]), answer_sessions=[1], answer_tags=[2]))
    group = link_pb2.Group(schema="[]", payload=1)
    check_report(
        link_pb2.Report(
            payloads=header([0, 5]),
            answer_sessions=[1],
            answer_tags=[2],
            partials=[link_pb2.Partial(batch=1, groups=[group]), link_pb2.Partial(batch=2, closed=True)],
        )
    )
