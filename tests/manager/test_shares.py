"""What a reducing call knows of each worker's share, case by case."""

from __future__ import annotations

import pytest

from manager.reducing.schema import decode_schema, encode_schema
from manager.reducing.shares import Decision, Group, Partial, Reduction, Shares, reduction_of
from protos import link_pb2, stream_pb2

A, B = "schema a", "schema b"


class _Shares(Shares):
    """Knows by itself which session is whose. Tests have different indices for all sessions."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions: dict[int, int] = {}

    def take(self, worker: int, *groups: Group, part: int = 1) -> list[int]:
        return self.partial(worker, Partial(7, part, groups, closed=False), self.sessions.__getitem__)


def folded(shares: _Shares, worker: int, part: int = 1, **sessions: int) -> None:
    """Sessions s1, s2, … that were folded at a worker, with their indices in the call."""
    shares.sessions.update({index: int(name[1:]) for name, index in sessions.items()})
    shares.answered(worker, part, list(sessions.values()))


def group(schema: str, *sessions: int, state: bytes | None = b"state") -> Group:
    return Group(schema, sessions, state)


def test_those_whose_kind_was_given_up_are_covered_and_named_apart() -> None:
    shares = _Shares()
    folded(shares, 0, s1=10, s2=11, s3=12)
    partial = Partial(7, 1, [group(A)], closed=False, given_up=[3, 99])
    assert shares.partial(0, partial, shares.sessions.__getitem__) == []
    assert shares.covered == 3
    assert shares.decide() == Decision([10, 11], [b"state"], [], A, [12])


def test_a_reduction_survives_the_way_over_the_link() -> None:
    reduction = Reduction("sum", {"dtype": "float32", "allow_nan": True, "n": 3, "x": 0.5, "b": b"\x00"})
    assert reduction_of(reduction.message()) == reduction
    assert reduction_of(Reduction("mean").message()) == Reduction("mean")


def test_an_option_without_a_value_is_refused() -> None:
    message = link_pb2.Reduction(reducer="sum", options={"dtype": stream_pb2.Scalar()})
    with pytest.raises(ValueError, match="dtype"):
        reduction_of(message)


def test_a_schema_survives_as_text() -> None:
    schema = (("b", (), "float32"), ("w", (3, 0, 2), "int64"), ("ü \"'", (1,), "bool"))
    assert decode_schema(encode_schema(schema)) == schema
    assert decode_schema(encode_schema(())) == ()


def test_nothing_is_known_at_first() -> None:
    shares = _Shares()
    assert (shares.covered, shares.folded, shares.bytes) == (0, 0, 0)
    assert shares.workers == set()
    assert shares.closing == set()
    assert shares.decide() == Decision([], [], [], "", [])


def test_a_worker_owes_a_partial_once_somebody_is_folded_there() -> None:
    shares = _Shares()
    shares.answered(1, 1, [])
    assert shares.workers == set()
    folded(shares, 1, s7=0)
    folded(shares, 2, s7=1)
    assert shares.workers == {1, 2}
    assert shares.folded == 2
    assert shares.take(1, group(A)) == []
    assert shares.workers == {2}


def test_the_first_group_is_of_all_whom_no_other_names() -> None:
    shares = _Shares()
    folded(shares, 0, s1=10, s2=11, s3=12, s4=13)
    assert shares.take(0, group(A), group(B, 3, state=b"b")) == []
    assert shares.covered == 4
    decision = shares.decide()
    assert sorted(decision.indices) == [10, 11, 13]
    assert decision.states == [b"state"]
    assert decision.others == [(12, B)]
    assert decision.schema == A


def test_a_partial_is_of_those_folded_since_the_last_one() -> None:
    shares = _Shares()
    folded(shares, 0, s1=0)
    shares.take(0, group(A, state=b"first"))
    folded(shares, 0, s2=1)
    shares.take(0, group(A, state=b"second"))
    assert shares.covered == 2
    decision = shares.decide()
    assert (decision.indices, decision.states) == ([0, 1], [b"first", b"second"])


def test_a_partial_is_of_its_own_part_whichever_comes_first() -> None:
    shares = _Shares()
    folded(shares, 0, part=1, s1=0)
    folded(shares, 0, part=2, s1=1, s2=2)  # the first session has answered again
    assert shares.take(0, group(A, state=b"second"), group(B, 2, state=b"apart"), part=2) == []
    assert shares.covered == 2
    assert shares.workers == {0}, "it owes a partial of the first part yet"
    assert shares.take(0, group(A, state=b"first"), part=1) == []
    assert shares.workers == set()
    decision = shares.decide()
    assert (decision.indices, decision.states) == ([1, 0], [b"second", b"first"])
    assert decision.others == [(2, B)]


def test_a_partial_of_a_part_in_which_nobody_was_folded_changes_nothing() -> None:
    shares = _Shares()
    folded(shares, 0, part=1, s1=0)
    assert shares.take(0, group(A), part=2) == []
    assert shares.take(0, part=0) == []
    assert shares.covered == 0
    assert shares.workers == {0}
    assert shares.take(0, group(A), part=1) == []
    assert shares.covered == 1


def test_a_lost_worker_loses_those_of_all_its_parts() -> None:
    shares = _Shares()
    for part in (1, 2):
        folded(shares, 0, part=part, **{f"s{part}": part})
        folded(shares, 1, part=part, **{f"s{part}": part + 10})
    assert sorted(shares.lose(0)) == [1, 2]
    assert shares.workers == {1}


def test_the_same_session_number_at_two_workers_is_two_participants() -> None:
    shares = _Shares()
    folded(shares, 0, s1=0)
    folded(shares, 1, s1=1)
    shares.take(1, group(A, state=b"one"))
    assert shares.workers == {0}
    shares.take(0, group(A, state=b"zero"))
    assert shares.decide().indices == [1, 0]


def test_those_of_a_partial_without_groups_are_lost() -> None:
    shares = _Shares()
    folded(shares, 0, s1=4, s2=5)
    assert sorted(shares.take(0)) == [4, 5]
    assert shares.covered == 0
    assert shares.workers == set()


def test_those_of_a_group_whose_state_cannot_be_had_are_lost() -> None:
    shares = _Shares()
    folded(shares, 0, s1=0, s2=1, s3=2)
    assert shares.take(0, group(A), group(B, 2, state=None)) == [1]
    assert shares.covered == 2
    folded(shares, 1, s1=3)
    assert shares.take(1, group(A, state=None)) == [3]
    assert sorted(shares.decide().indices) == [0, 2]


def test_a_session_that_nobody_knows_changes_nothing() -> None:
    shares = _Shares()
    folded(shares, 0, s1=0)
    assert shares.take(0, group(A), group(B, 99, state=b"of nobody")) == []
    assert shares.covered == 1
    assert shares.decide().states == [b"state"]
    assert shares.take(5, group(A)) == []


def test_a_session_counts_once_though_two_groups_name_it() -> None:
    shares = _Shares()
    folded(shares, 0, s1=0, s2=1)
    assert shares.take(0, group(A), group(B, 2), group("c", 2)) == []
    assert shares.covered == 2


def test_a_lost_worker_loses_those_who_are_in_no_partial_yet() -> None:
    shares = _Shares()
    folded(shares, 0, s1=0)
    folded(shares, 1, s1=1)
    shares.take(0, group(A))
    folded(shares, 0, s2=2)
    shares.closing = {0, 1}
    assert shares.lose(0) == [2]
    assert shares.closing == {1}
    assert shares.lose(0) == []
    assert shares.lose(9) == []
    assert shares.decide().indices == [0]


def test_the_group_that_most_participants_are_in_is_the_answer_over_all_workers() -> None:
    shares = _Shares()
    folded(shares, 0, s1=0, s2=1)
    folded(shares, 1, s1=2, s2=3, s3=4)
    shares.take(0, group(A, state=b"a0"))
    shares.take(1, group(B, state=b"b1"), group(A, 3, state=b"a1"))
    decision = shares.decide()
    assert decision.schema == A
    assert sorted(decision.indices) == [0, 1, 4]
    assert decision.states == [b"a0", b"a1"]
    assert sorted(decision.others) == [(2, B), (3, B)]


@pytest.mark.parametrize("first", [A, B])
def test_of_two_groups_of_the_same_size_it_is_always_the_same_one(first: str) -> None:
    shares = _Shares()
    second = B if first == A else A
    for worker, schema in enumerate([first, second]):
        folded(shares, worker, s1=worker)
        shares.take(worker, group(schema))
    assert shares.decide().schema == A


def test_what_is_given_to_it_is_not_changed() -> None:
    shares = _Shares()
    shares.sessions = {0: 1, 1: 2, 2: 3}
    everybody = [0, 1]
    shares.answered(0, 1, everybody)
    shares.answered(0, 1, [2])
    assert shares.folded == 3
    shares.take(0, group(A), group(B, 2), group("c", 3, state=None))
    shares.decide()
    assert everybody == [0, 1]
