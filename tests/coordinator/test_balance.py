"""Who is moved when workers have become uneven: enough to even them out, a few at a time, never too many."""

from __future__ import annotations

import random

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from coordinator.workers.balance import FEW, INTERVAL, SHARE, SLACK, TIME, TOLERANCE, Balance, surplus

COUNTS = st.dictionaries(st.integers(0, 31), st.integers(0, 5_000), max_size=16)


def mean(counts: dict[int, int]) -> float:
    return sum(counts.values()) / len(counts)


def land(counts: dict[int, int], moves: dict[int, int], rng: random.Random) -> None:
    """Those who are moved reconnect, and the system puts them anywhere."""
    for worker, number in moves.items():
        counts[worker] -= number
    for worker in rng.choices(sorted(counts), k=sum(moves.values())):
        counts[worker] += 1


def test_without_workers_nobody_is_moved() -> None:
    assert surplus({}) == {}


@given(st.integers(0, 10_000))
def test_with_one_worker_there_is_nowhere_to_go(count: int) -> None:
    assert surplus({3: count}) == {}


@given(st.integers(1, 64), st.integers(0, 1_000))
def test_workers_with_the_same_number_are_left_alone(workers: int, count: int) -> None:
    assert surplus(dict.fromkeys(range(workers), count)) == {}


@given(st.lists(st.integers(1, SLACK), min_size=2, max_size=20) | st.lists(st.integers(0, 1), max_size=20))
def test_small_pools_are_left_alone(counts: list[int]) -> None:
    assert surplus(dict(enumerate(counts))) == {}


@given(COUNTS)
def test_only_who_has_too_many_gives_some_and_never_more_than_that(counts: dict[int, int]) -> None:
    moves = surplus(counts)
    for worker, number in moves.items():
        assert counts[worker] > mean(counts)
        assert 0 < number <= counts[worker] - mean(counts), "it would then have less than its share"


@given(COUNTS)
def test_only_a_few_are_moved_at_a_time(counts: dict[int, int]) -> None:
    assert sum(surplus(counts).values()) <= max(FEW, SHARE * sum(counts.values()))


@given(COUNTS)
def test_somebody_is_moved_as_long_as_one_has_too_many(counts: dict[int, int]) -> None:
    assume(counts)
    most, least = TOLERANCE * mean(counts) + SLACK, mean(counts) / TOLERANCE - SLACK
    uneven = any(n > most or n < least for n in counts.values())
    uneven = uneven or (min(counts.values()) == 0 and max(counts.values()) > 1)
    assert bool(surplus(counts)) == (uneven and max(counts.values()) >= mean(counts) + 1)


@given(COUNTS, st.integers(0, 20_000))
def test_no_more_are_moved_while_many_are_on_their_way(counts: dict[int, int], moving: int) -> None:
    total = sum(counts.values()) + moving
    assert sum(surplus(counts, moving).values()) <= max(0, max(FEW, SHARE * total) - moving)


def test_no_worker_stays_empty_beside_one_that_has_several() -> None:
    assert surplus({0: 4, 1: 0}) == {0: 2}
    assert surplus({0: 4, 1: 3, 2: 0}) == {0: 1}
    assert surplus({0: 1, 1: 0}) == {}


def test_the_fullest_gives_first() -> None:
    assert surplus({0: 300, 1: 600, 2: 0, 3: 0}) == {1: 90}


def test_the_next_fullest_gives_the_rest() -> None:
    assert surplus({0: 26, 1: 42, 2: 30, 3: 2, 4: 0}) == {1: 10}
    assert surplus({0: 34, 1: 26, 2: 28, 3: 6, 4: 6}) == {0: 10}
    assert surplus({0: 15, 1: 14, 2: 3, 3: 0}) == {0: 4}
    assert surplus({0: 1_000, 1: 0, 2: 0, 3: 0, 4: 0, 5: 0, 6: 0, 7: 0, 8: 0, 9: 0}) == {0: 100}


def test_what_one_has_too_many_of_is_not_all_that_may_be_moved() -> None:
    counts = dict.fromkeys(range(20), 100) | {20: 130, 21: 126}
    assert surplus(counts) == {20: 27, 21: 23}


@given(COUNTS, st.permutations(range(32)))
def test_the_order_of_workers_makes_no_difference(counts: dict[int, int], order: list[int]) -> None:
    shuffled = {worker: counts[worker] for worker in order if worker in counts}
    assert surplus(shuffled) == surplus(counts)


@given(st.lists(st.integers(0, 400), min_size=2, max_size=8), st.integers(0, 2**32))
@settings(max_examples=40)
def test_whatever_has_happened_before_it_comes_to_rest(counts: list[int], seed: int) -> None:
    """About a tenth is moved at a time and lands at random: after 60 steps, 30 s, they are even."""
    now, rng = dict(enumerate(counts)), random.Random(seed)
    total = sum(counts)
    for _ in range(60):
        if not (moves := surplus(now)):
            break
        land(now, moves, rng)
    assert sum(now.values()) == total, "somebody was lost on the way"
    assert all(count >= 0 for count in now.values())
    assert max(now.values()) <= 1.3 * mean(now) + 2 * SLACK


@given(st.integers(2, 16), st.integers(50, 2_000), st.integers(0, 2**32))
@settings(max_examples=40)
def test_a_worker_that_was_empty_is_filled_soon(workers: int, count: int, seed: int) -> None:
    """One was killed: its participants went to the others, and the one in its place is empty."""
    counts, rng = {0: 0} | dict.fromkeys(range(1, workers), count), random.Random(seed)
    for _ in range(80):
        if not (moves := surplus(counts)):
            break
        land(counts, moves, rng)
    assert counts[0] > mean(counts) / 2


def test_it_is_looked_at_now_and_then_for_a_while_after_a_restart() -> None:
    balance = Balance()
    assert not balance.due(5.0)
    balance.restarted(5.0)
    assert balance.due(5.0)
    assert not balance.due(5.0 + INTERVAL / 2)
    assert balance.due(5.0 + INTERVAL)
    balance.uneven = True
    assert balance.due(5.0 + TIME), "until all have about the same"
    balance.uneven = False
    assert not balance.due(5.0 + 2 * TIME)
    balance.restarted(100.0)
    assert balance.due(100.0)
