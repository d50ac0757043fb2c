"""coordinator/workers/patience.py: how long is waited for workers to end, and which time doesn't count."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.workers.patience import STOPPED, Patience
from manager.liveness import AWAY_TIME

SECONDS = st.floats(0, 100)
STEPS = st.lists(st.floats(0, 0.99 * STOPPED), max_size=30)


@given(SECONDS, STEPS)
def test_who_looks_often_waits_for_as_long_as_was_said(seconds: float, steps: list[float]) -> None:
    patience, now = Patience(seconds, 5.0), 5.0
    for step in steps:
        now += step
        assert abs(patience.left(now) - (5.0 + seconds - now)) < 1e-6


@given(SECONDS, STEPS, st.floats(1.01 * STOPPED, 1000))
def test_time_in_which_this_process_was_stopped_does_not_count(
    seconds: float, steps: list[float], stopped: float
) -> None:
    patience, now = Patience(seconds, 0.0), 0.0
    for step in steps:
        patience.left(now := now + step)
    before = patience.left(now)
    left = patience.left(now + stopped)
    assert left >= AWAY_TIME - 1e-6, "what came meanwhile could not be read"
    assert abs(left - max(before, AWAY_TIME)) < 1e-6


@given(SECONDS, SECONDS, st.floats(0, 1000))
def test_it_can_be_shortened_and_not_made_longer(seconds: float, other: float, gap: float) -> None:
    patience = Patience(seconds, 0.0)
    left = Patience(seconds, 0.0).left(gap)
    patience.shorten(other, gap)
    assert abs(patience.left(gap) - min(left, other)) < 1e-6
    assert abs(patience.left(gap + 1.0) - (min(left, other) - 1.0)) < 1e-6, "the gap counted twice"
