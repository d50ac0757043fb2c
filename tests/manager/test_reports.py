"""A worker's report holds what happened since the last one, in parallel lists."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from manager.reports import Reports
from protos import link_pb2
from protos.frames import OWN_FRAME, check_report, unpack


def test_a_new_batch_is_empty() -> None:
    reports = Reports()
    assert not reports
    assert reports.take() == (link_pb2.Report(), [])


def test_each_kind_of_event_makes_it_worth_sending() -> None:
    joined, answered, ended = Reports(), Reports(), Reports()
    joined.joined(link_pb2.Join(session=1))
    answered.answered(1, 2, b"")
    ended.ended(1, link_pb2.LOST)
    assert joined
    assert answered
    assert ended


def test_taking_begins_a_new_batch_and_leaves_the_old_alone() -> None:
    reports = Reports()
    reports.joined(link_pb2.Join(session=1))
    reports.answered(1, 2, b"x")
    reports.ended(1, link_pb2.LEFT)
    report, frames = reports.take()
    assert not reports
    reports.answered(5, 6, b"y")
    assert report == link_pb2.Report(
        joins=[link_pb2.Join(session=1)],
        answer_sessions=[1],
        answer_tags=[2],
        answer_sizes=[1],
        end_sessions=[1],
        end_reasons=[link_pb2.LEFT],
    )
    assert frames == [b"x"]


def test_clearing_drops_everything() -> None:
    reports = Reports()
    reports.joined(link_pb2.Join(session=1))
    reports.answered(1, 2, b"x")
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
    report, frames = reports.take()
    parsed = link_pb2.Report.FromString(report.SerializeToString())
    check_report(parsed)
    payloads = [bytes(payload) for payload in unpack(frames, parsed.answer_sizes)]
    assert list(zip(parsed.answer_sessions, parsed.answer_tags, payloads, strict=True)) == answers
