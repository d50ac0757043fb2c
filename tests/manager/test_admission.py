"""Nobody crowds in, nobody is turned away without a time to come back, and whoever obeys gets in."""

from __future__ import annotations

import heapq
import math
import random as randomness
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from manager.limits import moves_per_second
from manager.serving.admission import (
    BURST_TIME,
    LEAST_DELAY,
    LEAST_MOVE,
    LEAST_MOVE_WINDOW,
    MAX_WINDOW,
    Admission,
)
from manager.serving.refused import Cause

NOW = 1234.5
CLOSE = 1e-6

rates = st.sampled_from([0.1, 0.5, 1.0, 3.7, 50.0, 1000.0])
randoms = st.randoms(use_true_random=False)
seeded = st.integers(0, 2**32).map(randomness.Random)  # where drawing each number would take too long


def admission(
    *,
    capacity: int = 10**9,
    max_joins: float = 10.0,
    come_back: tuple[float, float] = (10.0, 60.0),
    random: randomness.Random | None = None,
) -> Admission:
    return Admission(
        capacity=capacity,
        max_joins=max_joins,
        come_back=come_back,
        refused=Counter(),
        random=(random or randomness.Random(7)).random,
        now=NOW,
    )


def herd(subject: Admission, arrivals: list[float], capacity: float = math.inf) -> tuple[list[float], int]:
    """Lets participants come at these times, who obey. Gives when they joined, and the most tries of one."""
    coming = [(at, number, 1) for number, at in enumerate(arrivals)]
    heapq.heapify(coming)
    joined: list[float] = []
    most = 0
    while coming and len(joined) < capacity:
        now, number, tries = heapq.heappop(coming)
        delay = subject.newcomer(len(joined), now)
        if delay is None:
            joined.append(now)
            most = max(most, tries)
        else:
            heapq.heappush(coming, (now + delay, number, tries + 1))
    return joined, most


# Too fast


@given(rates, st.lists(st.floats(0, 3), max_size=200), randoms)
def test_in_no_time_do_more_join_than_the_burst_and_what_the_rate_allows(
    rate: float, gaps: list[float], random: randomness.Random
) -> None:
    subject = admission(max_joins=rate, random=random)
    now = NOW
    joins: list[float] = []
    for gap in gaps:
        now += gap / rate
        if subject.newcomer(0, now) is None:
            joins.append(now)
    for first, since in enumerate(joins):
        for last in range(first, len(joins)):
            assert last - first + 1 <= max(2.0, BURST_TIME * rate) + (joins[last] - since) * rate + CLOSE


@given(rates, st.lists(st.floats(0, 3), max_size=200), randoms)
def test_nobody_is_turned_away_without_a_time_to_come_back_and_each_is_counted(
    rate: float, gaps: list[float], random: randomness.Random
) -> None:
    subject = admission(max_joins=rate, random=random)
    now, turned_away = NOW, 0
    for gap in gaps:
        now += gap / rate
        delay = subject.newcomer(0, now)
        if delay is not None:
            turned_away += 1
            assert LEAST_DELAY <= delay <= LEAST_DELAY + MAX_WINDOW
        assert subject._refused[Cause.MAX_JOINS] == subject._refused.total() == turned_away


@example(1.0, 3, randomness.Random(0))
@given(st.sampled_from([1.0, 3.7, 50.0, 1000.0]), st.integers(0, 1500), seeded)
def test_a_herd_gets_in_at_the_second_try_and_as_fast_as_the_rate_allows(
    rate: float, size: int, random: randomness.Random
) -> None:
    joined, tries = herd(admission(max_joins=rate, random=random), [NOW] * size)
    assert len(joined) == size
    assert tries <= 2
    later = max(0.0, size + 2 - BURST_TIME * rate)
    assert max(joined, default=NOW) - NOW <= LEAST_DELAY + later / rate + CLOSE


@given(st.sampled_from([50.0, 1000.0]), st.lists(st.floats(0, 5), max_size=200), seeded)
def test_those_who_come_while_a_herd_settles_get_in_as_well(
    rate: float, later: list[float], random: randomness.Random
) -> None:
    arrivals = [NOW] * 500 + [NOW + after for after in later]
    joined, _ = herd(admission(max_joins=rate, random=random), arrivals)
    assert len(joined) == len(arrivals)
    assert max(joined) - NOW <= 5 + LEAST_DELAY + 2 * len(arrivals) / rate


def test_those_turned_away_come_back_evenly_not_all_at_once() -> None:
    subject = admission(max_joins=100)
    delays = [delay for _ in range(1300) if (delay := subject.newcomer(0, NOW)) is not None]
    assert len(delays) == 1000
    per_second = Counter(math.floor(delay - LEAST_DELAY) for delay in delays)
    assert set(per_second) <= set(range(11))
    assert max(per_second.values()) <= 101


def test_those_who_are_not_back_yet_count() -> None:
    subject = admission(max_joins=10)
    for _ in range(30 + 50):
        subject.newcomer(0, NOW)
    delay = subject.newcomer(0, NOW + 0.05)  # no token yet; fifty are to come before
    assert delay is not None
    assert delay >= 5.0


def test_after_a_quiet_time_no_more_than_a_burst_has_been_saved() -> None:
    subject = admission(max_joins=10)
    later = NOW + 3600
    assert [subject.newcomer(0, later) is None for _ in range(32)] == [True] * 30 + [False] * 2


def test_even_a_flood_is_told_times_within_reason() -> None:
    subject = admission(max_joins=0.1)
    for _ in range(2000):
        delay = subject.newcomer(0, NOW)
    assert delay == LEAST_DELAY + MAX_WINDOW


# Full


@given(
    st.integers(1, 2000), st.sampled_from([1.0, 10.0, 1000.0]), st.floats(0.1, 50), st.floats(0, 50), seeded
)
def test_those_who_find_it_full_come_back_within_the_window_and_within_the_rate(
    size: int, rate: float, low: float, width: float, random: randomness.Random
) -> None:
    subject = admission(capacity=5, max_joins=rate, come_back=(low, low + width), random=random)
    seconds: Counter[int] = Counter()
    for before in range(size):
        delay = subject.newcomer(5, NOW)
        assert delay is not None
        window = max(width, 2 * before / rate)
        assert low - CLOSE <= delay <= low + window + before / rate + 1 + CLOSE
        seconds[math.floor(NOW + delay)] += 1
    if 2 * size / rate < MAX_WINDOW:
        assert max(seconds.values()) <= rate
    assert subject._refused == {Cause.MAX_PER_WORKER: size}


def test_a_few_come_back_at_random_times_in_the_window_alone() -> None:
    subject = admission(capacity=1, max_joins=1000, come_back=(10, 60))
    delays = sorted(subject.newcomer(1, NOW) or 0.0 for _ in range(1000))
    assert 10 <= delays[0] < 11
    assert 59 < delays[-1] <= 60
    assert all(delays[index] == pytest.approx(10 + index / 20, abs=3) for index in range(1000)), "not uniform"


def test_the_window_grows_with_those_who_are_away_and_shrinks_when_their_time_has_come() -> None:
    subject = admission(capacity=1, max_joins=1, come_back=(10, 20))
    delays = [subject.newcomer(1, NOW) or 0.0 for _ in range(500)]
    assert max(delays[:5]) <= 21
    assert max(delays[-100:]) > 500
    later = NOW + max(delays) + 1
    assert all((subject.newcomer(1, later) or 0.0) <= 21 for _ in range(5))


@given(st.lists(st.tuples(st.floats(0, 500), st.integers(0, 50)), max_size=20), randoms)
def test_the_book_keeps_only_what_is_to_come(
    steps: list[tuple[float, int]], random: randomness.Random
) -> None:
    subject = admission(capacity=1, max_joins=3, come_back=(1, 5), random=random)
    now = NOW
    due: list[float] = []
    for passed, newcomers in steps:
        now += passed
        due += [now + (subject.newcomer(1, now) or 0.0) for _ in range(newcomers)]
        if newcomers:
            assert subject._away == sum(subject._book.values())
            assert subject._away == sum(math.floor(at) >= math.floor(now) for at in due)


def test_to_find_it_full_takes_nobody_s_turn() -> None:
    subject = admission(capacity=1, max_joins=1)
    for _ in range(10):
        assert subject.newcomer(1, NOW) is not None
    assert subject.newcomer(0, NOW) is None


@given(st.integers(1, 50), st.integers(0, 200), seeded)
def test_there_are_never_more_than_there_is_room_for_and_it_is_filled(
    capacity: int, size: int, random: randomness.Random
) -> None:
    subject = admission(capacity=capacity, random=random)
    joined, _ = herd(subject, [NOW] * size, capacity=min(capacity, size))
    assert len(joined) == min(capacity, size)
    assert subject.newcomer(capacity, NOW + 1000) is not None


# Draining


@given(rates, st.lists(st.floats(0, 3), max_size=200), randoms)
def test_those_who_are_moved_come_to_the_others_one_after_the_other(
    rate: float, gaps: list[float], random: randomness.Random
) -> None:
    """And each is there when who waits for it expects it at the latest (pool.py, without its 15 seconds)."""
    subject = admission(max_joins=rate, random=random)
    now, place, per_second = NOW, NOW, moves_per_second(rate)
    for gap in gaps:
        now += gap / rate
        place = max(place, now) + 1 / per_second
        back = now + subject.move(now)
        assert place + LEAST_MOVE - CLOSE <= back <= place + LEAST_MOVE + LEAST_MOVE_WINDOW + CLOSE
    assert not subject._refused


@given(st.sampled_from([50.0, 1000.0]), st.integers(2, 3000), seeded)
def test_another_worker_lets_them_in_at_once(rate: float, size: int, random: randomness.Random) -> None:
    leaving, other = admission(max_joins=rate, random=random), admission(max_joins=rate, random=random)
    arrivals = sorted(NOW + leaving.move(NOW) for _ in range(size))
    assert all(other.newcomer(0, at) is None for at in arrivals)
