"""Numbers on a link: what is new, what is a repeat, what is missing, and what may be forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.link.sequence import ACKNOWLEDGE_AFTER, Sequence, Verdict


def send(sequence: Sequence[str], *messages: str) -> list[int]:
    numbers = []
    for message in messages:
        numbers.append(sequence.next())
        sequence.keep(message)
    return numbers


def test_messages_are_numbered_from_one() -> None:
    sequence: Sequence[str] = Sequence()
    assert send(sequence, "a", "b") == [1, 2]
    assert sequence.sent == 2


@pytest.mark.parametrize(
    ("number", "verdict"),
    [
        (0, Verdict.REPEAT),
        (2, Verdict.REPEAT),
        (3, Verdict.REPEAT),
        (4, Verdict.NEW),
        (5, Verdict.GAP),
        (2**64 - 1, Verdict.GAP),
    ],
)
def test_only_the_next_number_is_new(number: int, verdict: Verdict) -> None:
    sequence: Sequence[str] = Sequence()
    for arrived in (1, 2, 3):
        assert sequence.arrived(arrived) is Verdict.NEW
    assert sequence.arrived(number) is verdict
    assert sequence.received == (4 if verdict is Verdict.NEW else 3)


def test_what_is_acknowledged_is_forgotten() -> None:
    sequence: Sequence[str] = Sequence()
    send(sequence, "a", "b", "c")
    sequence.acknowledged(2)
    assert sequence.unacknowledged == 1
    assert sequence.again(1) == ["c"]
    sequence.acknowledged(1)  # an old acknowledgement, repeated
    assert sequence.again(1) == ["c"]
    sequence.acknowledged(3)
    assert sequence.unacknowledged == 0


def test_an_acknowledgement_of_more_than_was_sent_forgets_all_and_harms_nothing() -> None:
    sequence: Sequence[str] = Sequence()
    send(sequence, "a")
    sequence.acknowledged(99)
    assert sequence.unacknowledged == 0
    assert send(sequence, "b") == [2]
    assert sequence.again(1) == ["b"]


def test_messages_are_repeated_in_order_from_where_asked() -> None:
    sequence: Sequence[str] = Sequence()
    send(sequence, "a", "b", "c")
    assert sequence.again(2) == ["b", "c"]
    assert sequence.again(4) == []
    assert sequence.unacknowledged == 3


def test_an_acknowledgement_is_due_after_so_many_messages() -> None:
    sequence: Sequence[str] = Sequence()
    for number in range(1, ACKNOWLEDGE_AFTER + 1):
        assert not sequence.acknowledgement_due
        sequence.arrived(number)
    assert sequence.acknowledgement_due
    assert sequence.acknowledge() == ACKNOWLEDGE_AFTER
    assert not sequence.acknowledgement_due


@given(st.lists(st.integers(0, 12)))
def test_whatever_numbers_come_the_new_ones_are_in_order(numbers: list[int]) -> None:
    sequence: Sequence[str] = Sequence()
    new = [number for number in numbers if sequence.arrived(number) is Verdict.NEW]
    assert new == list(range(1, len(new) + 1))
    assert sequence.received == len(new)
