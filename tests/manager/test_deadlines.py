"""Deadlines come once each, in order, and not for what was removed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from manager.core.deadlines import Deadlines


def due(deadlines: Deadlines[str], now: float) -> list[str]:
    things = []
    while (thing := deadlines.due(now)) is not None:
        things.append(thing)
    return things


def test_at_first_there_is_none() -> None:
    deadlines: Deadlines[str] = Deadlines()
    assert deadlines.next is None
    assert deadlines.due(1e9) is None
    deadlines.remove(1)


def test_each_comes_once_at_its_time_and_in_order() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for id, (time, thing) in enumerate([(5.0, "late"), (1.0, "first"), (2.0, "second")]):
        deadlines.add(time, id, thing)
    assert deadlines.next == 1.0
    assert due(deadlines, 0.999) == []
    assert due(deadlines, 2.0) == ["first", "second"]
    assert deadlines.next == 5.0
    assert due(deadlines, 2.0) == []
    assert due(deadlines, 9.0) == ["late"]
    assert deadlines.next is None


def test_what_was_removed_does_not_come_and_is_not_the_next() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.add(1.0, 1, "first")
    deadlines.add(2.0, 2, "second")
    deadlines.remove(1)
    deadlines.remove(1)
    assert deadlines.next == 2.0
    assert due(deadlines, 3.0) == ["second"]
    deadlines.remove(2)


def test_what_was_removed_does_not_pile_up() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.add(1e9, 0, "the one that stays")
    for id in range(1, 5_000):
        deadlines.add(float(id), id, "another")
        deadlines.remove(id)
        assert len(deadlines) <= 2 * 64
    assert deadlines.next == 1e9
    assert len(deadlines) == 1


ACTION = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 20)),
    st.tuples(st.just("remove"), st.integers(0, 200)),
    st.tuples(st.just("pass"), st.integers(1, 5)),
)


@given(st.lists(ACTION, max_size=200))
def test_it_is_as_if_all_were_looked_through(actions: list[tuple[str, int]]) -> None:
    deadlines: Deadlines[str] = Deadlines()
    living: dict[int, float] = {}
    now, added = 0.0, 0
    for action, number in actions:
        if action == "add":
            added += 1
            living[added] = now + number
            deadlines.add(now + number, added, str(added))
        elif action == "remove":
            living.pop(number, None)
            deadlines.remove(number)
        else:
            now += number
            come = sorted((time, id) for id, time in living.items() if time <= now)
            assert due(deadlines, now) == [str(id) for _, id in come]
            for _, id in come:
                del living[id]
        assert deadlines.next == min(living.values(), default=None)
