"""A worker's report holds what happened since the last one, in parallel lists."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from manager.link.reports import Reports
from manager.reducing.shares import Folded, Group, Partial
from protos import link_pb2
from protos.frames import OWN_FRAME, Shared, check_report, pack, unpack


def test_a_new_batch_is_empty() -> None:
    reports = Reports()
    assert not reports
    assert reports.take() == (link_pb2.Report(), [])


def test_each_kind_of_event_makes_it_worth_sending() -> None:
    joined, answered, folded, partial, ended = (Reports() for _ in range(5))
    joined.joined(link_pb2.Join(session=1))
    answered.answered(1, 2, b"")
    folded.folded(Folded(1, 1, [2], 3, 0))
    partial.partial(Partial(1, 1, [], closed=True))
    ended.ended(1, link_pb2.LOST)
    assert joined
    assert answered
    assert folded
    assert partial
    assert ended


def test_taking_begins_a_new_batch_and_leaves_the_old_alone() -> None:
    reports = Reports()
    reports.joined(link_pb2.Join(session=1))
    reports.answered(1, 2, b"x")
    reports.folded(Folded(7, 6, [3, 4], 50, 9))
    reports.partial(Partial(7, 6, [Group("schema", [], b"state")], closed=False))
    reports.ended(1, link_pb2.LEFT)
    report, payloads = reports.take()
    assert not reports
    reports.answered(5, 6, b"y")
    reports.partial(Partial(7, 6, [Group("schema", [], b"next")], closed=True))
    assert report == link_pb2.Report(
        joins=[link_pb2.Join(session=1)],
        answer_sessions=[1],
        answer_tags=[2],
        folded=[link_pb2.Folded(batch=7, part=6, sessions=[3, 4], bytes=50, tag=9)],
        partials=[link_pb2.Partial(batch=7, part=6, groups=[link_pb2.Group(schema="schema", payload=1)])],
        end_sessions=[1],
        end_reasons=[link_pb2.LEFT],
    )
    assert payloads == [b"x", b"state"]


def test_who_was_folded_may_be_said_by_a_tag_alone() -> None:
    reports = Reports()
    reports.folded(Folded(7, 1, [], 50, 2**64 - 1))
    reports.folded(Folded(8, 2**64 - 1, [1], 5, 0))
    assert reports
    parsed, payloads = across_the_wire(reports)
    assert [(each.batch, each.part, list(each.sessions), each.bytes, each.tag) for each in parsed.folded] == [
        (7, 1, [], 50, 2**64 - 1),
        (8, 2**64 - 1, [1], 5, 0),
    ]
    assert payloads == []


def test_a_partial_may_say_why_there_is_nothing_to_show() -> None:
    reports = Reports()
    reports.partial(Partial(7, 3, [], closed=True, error="the reducer failed"))
    reports.partial(Partial(8, 4, [Group("schema", [1], None)], closed=False))  # nor can this state be had
    parsed, payloads = across_the_wire(reports)
    assert list(parsed.partials) == [
        link_pb2.Partial(batch=7, part=3, closed=True, error="the reducer failed"),
        link_pb2.Partial(batch=8, part=4),
    ]
    assert payloads == []


def test_clearing_drops_everything() -> None:
    reports = Reports()
    reports.joined(link_pb2.Join(session=1))
    reports.answered(1, 2, b"x")
    reports.folded(Folded(7, 6, [3, 4], 50, 9))
    reports.partial(Partial(7, 6, [Group("schema", [], b"state")], closed=False))
    reports.ended(1, link_pb2.LEFT)
    reports.clear()
    assert not reports
    assert reports.take() == (link_pb2.Report(), [])


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**64 - 1),
            st.integers(0, 2**64 - 1),
            st.binary(max_size=20) | st.just(bytes(OWN_FRAME)),
        ),
        max_size=10,
    )
)
def test_answers_survive_the_wire(answers: list[tuple[int, int, bytes]]) -> None:
    reports = Reports()
    for session, tag, answer in answers:
        reports.answered(session, tag, answer)
    parsed, payloads = across_the_wire(reports)
    assert list(zip(parsed.answer_sessions, parsed.answer_tags, payloads, strict=True)) == answers


GROUPS = st.lists(
    st.tuples(st.text(max_size=3), st.lists(st.integers(0, 2**64 - 1), max_size=3), st.binary(max_size=20)),
    max_size=3,
)


@given(
    st.lists(st.binary(max_size=20) | st.just(bytes(OWN_FRAME)), max_size=5),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.booleans(), GROUPS), max_size=4),
)
def test_groups_find_their_states_behind_the_answers(
    answers: list[bytes], partials: list[tuple[int, int, bool, list[tuple[str, list[int], bytes]]]]
) -> None:
    reports = Reports()

    def tell(batch: int, part: int, closed: bool, groups: list[tuple[str, list[int], bytes]]) -> None:
        reports.partial(Partial(batch, part, [Group(*group) for group in groups], closed))

    for number, answer in enumerate(answers):
        if partials and number % 2:  # in any order
            tell(*partials[0])
        reports.answered(number, 1, answer)
    early = partials[:1] * (len(answers) // 2)
    for partial in partials:
        tell(*partial)
    parsed, payloads = across_the_wire(reports)
    assert payloads[: len(answers)] == answers
    assert [
        (
            said.batch,
            said.part,
            said.closed,
            [(group.schema, list(group.sessions), payloads[group.payload]) for group in said.groups],
        )
        for said in parsed.partials
    ] == early + partials


def across_the_wire(reports: Reports) -> tuple[link_pb2.Report, list[bytes]]:
    """What the coordinator makes of what there is to report."""
    report, payloads = reports.take()
    header, frames = pack(payloads)
    if header is not None:
        report.payloads.CopyFrom(header)
    parsed = link_pb2.Report.FromString(report.SerializeToString())
    check_report(parsed)
    received = unpack(frames, parsed.payloads)
    assert not any(isinstance(payload, Shared) for payload in received)
    return parsed, [bytes(payload) for payload in received if not isinstance(payload, Shared)]
