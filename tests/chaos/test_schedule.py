"""The schedule of the chaos run: the same for the same seed, of all kinds, and no more than can be borne."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.schedule import DEATHS, KINDS, PERIOD, Fault, make_schedule


def schedule(seed: int, seconds: float, kinds: set[str] | None = None) -> list[Fault]:
    return make_schedule(seed, seconds, KINDS if kinds is None else kinds, workers=3, groups=4, scripts=2)


def test_the_same_seed_gives_the_same_schedule_and_another_one_another() -> None:
    assert schedule(7, 60) == schedule(7, 60)
    assert schedule(7, 60) != schedule(8, 60)


@pytest.mark.parametrize("seed", range(20))
def test_every_kind_comes_within_two_minutes(seed: int) -> None:
    assert {fault.kind for fault in schedule(seed, 120)} == set(KINDS)


@given(st.integers(), st.floats(0, 700), st.sets(st.sampled_from(sorted(KINDS))))
def test_only_kinds_that_were_asked_for_come_and_none_begins_after_the_end(
    seed: int, seconds: float, kinds: set[str]
) -> None:
    faults = schedule(seed, seconds, kinds)
    assert {fault.kind for fault in faults} <= kinds
    assert all(0 <= fault.at < seconds for fault in faults)
    assert faults == sorted(faults, key=lambda fault: fault.at)


@given(st.integers())
def test_what_was_hit_is_left_alone_until_it_should_have_recovered(seed: int) -> None:
    free_at: dict[tuple[str, int], float] = {}
    for fault in schedule(seed, 300):
        kind = KINDS[fault.kind]
        assert fault.at >= free_at.get((kind.hits, fault.target), 0.0)
        assert kind.shortest <= fault.lasts <= kind.longest
        free_at[kind.hits, fault.target] = fault.at + fault.lasts + kind.rest


@given(st.integers())
def test_no_slot_dies_so_often_that_it_would_be_given_up(seed: int) -> None:
    deaths: dict[int, list[float]] = defaultdict(list)
    for fault in schedule(seed, 600):
        if KINDS[fault.kind].deadly:
            deaths[fault.target].append(fault.at)
    for times in deaths.values():
        for at in times:
            assert sum(at <= other < at + PERIOD for other in times) <= DEATHS


def test_faults_keep_coming() -> None:
    at = [fault.at for fault in schedule(1, 600)]
    assert len(at) > 250
    assert max(later - earlier for earlier, later in itertools.pairwise(at)) < 15
