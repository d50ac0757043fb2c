"""coordinator/patience.py: how long is waited for workers to end, and which time doesn't count."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.patience import LOOK, Patience

SECONDS = st.floats(0, 100)
STEPS = st.lists(st.floats(0, 1.9), max_size=30)


@given(SECONDS, STEPS)
def test_who_looks_often_waits_for_as_long_as_was_said(seconds: float, steps: list[float]) -> None:
    patience, now = Patience(seconds, 5.0), 5.0
    for step in steps:
        now += step
        assert abs(patience.left(now) - (5.0 + seconds - now)) < 1e-6


@given(SECONDS, STEPS, st.floats(2.1, 1000))
def test_time_in_which_this_process_was_stopped_does_not_count(
    seconds: float, steps: list[float], stopped: float
) -> None:
    patience, now = Patience(seconds, 0.0), 0.0
    for step in steps:
        patience.left(now := now + step)
    before = patience.left(now)
    left = patience.left(now + stopped)
    assert left >= LOOK - 1e-6, "what came meanwhile could not be read"
    assert abs(left - max(before, LOOK)) < 1e-6


@given(SECONDS, SECONDS)
def test_it_can_be_shortened_and_not_made_longer(seconds: float, other: float) -> None:
    patience = Patience(seconds, 0.0)
    patience.shorten(other, 1.0)
    assert abs(patience.left(1.0) - min(seconds - 1.0, other)) < 1e-6
