"""When a worker that ended is started again: at once, later, never."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.workers.restarts import (
    FIRST_WAIT,
    MAX_DEATHS,
    MAX_WAIT,
    PERIOD,
    STABLE_AFTER,
    GiveUp,
    Restart,
    RestartPolicy,
)


def test_one_that_worked_is_started_again_at_once() -> None:
    assert RestartPolicy().died(booted=True, lived=1.0, now=0.0) == Restart(0.0)


def test_one_that_could_not_boot_waits_even_the_first_time() -> None:
    assert RestartPolicy().died(booted=False, lived=0.1, now=0.0) == Restart(FIRST_WAIT)


def test_waits_grow() -> None:
    policy = RestartPolicy()
    decisions = [policy.died(booted=True, lived=1.0, now=now) for now in range(MAX_DEATHS)]
    waits = [decision.delay for decision in decisions if isinstance(decision, Restart)]
    assert waits == [0.0, 0.2, 0.4, 0.8, 1.6, 3.2]


def test_a_crash_loop_is_given_up_with_a_reason() -> None:
    policy = RestartPolicy()
    for now in range(MAX_DEATHS):
        assert isinstance(policy.died(booted=True, lived=1.0, now=now), Restart)
    decision = policy.died(booted=True, lived=1.0, now=PERIOD)
    assert decision == GiveUp(f"it died {MAX_DEATHS + 1} times within 60 s")


def test_deaths_longer_ago_than_the_period_do_not_count() -> None:
    policy = RestartPolicy()
    for now in range(MAX_DEATHS):
        policy.died(booted=True, lived=1.0, now=now)
    assert isinstance(policy.died(booted=True, lived=1.0, now=PERIOD + 0.1), Restart)


def test_a_long_life_clears_the_record() -> None:
    policy = RestartPolicy()
    for now in (0.0, 1.0, 2.0):
        policy.died(booted=True, lived=1.0, now=now)
    assert policy.died(booted=True, lived=STABLE_AFTER, now=40.0) == Restart(0.0)


def test_one_that_dies_now_and_then_for_days_is_still_restarted() -> None:
    # Neither a crash loop nor ever stable: the wait must stay what it is, however often it has been doubled.
    policy = RestartPolicy()
    for death in range(5_000):
        decision = policy.died(booted=True, lived=20.0, now=death * 30.0)
    assert decision == Restart(MAX_WAIT)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100), st.floats(0, 100)), max_size=60))
def test_it_gives_up_exactly_in_a_crash_loop(lives: list[tuple[bool, float, float]]) -> None:
    policy = RestartPolicy()
    now = 0.0
    deaths: list[float] = []
    for booted, lived, pause in lives:
        now += pause
        deaths.append(now)
        decision = policy.died(booted=booted, lived=lived, now=now)
        recent = sum(now - death <= PERIOD for death in deaths)
        if recent > MAX_DEATHS:
            assert isinstance(decision, GiveUp)
        else:
            assert isinstance(decision, Restart)
            assert 0 <= decision.delay <= MAX_WAIT
            assert decision.delay > 0 or booted
