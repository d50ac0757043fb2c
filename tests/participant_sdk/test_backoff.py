"""The waits between attempts grow, are capped, and are spread over the whole interval."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from participant_sdk.backoff import Backoff

fractions = st.floats(0, 1, exclude_max=True)


def test_the_interval_doubles_up_to_the_cap() -> None:
    backoff = Backoff(base=1.0, cap=10.0)
    assert [backoff.next(0.5) * 2 for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    assert backoff.attempts == 6


@given(st.lists(fractions, max_size=100), fractions)
def test_a_wait_is_the_random_share_of_its_interval(earlier: list[float], fraction: float) -> None:
    backoff = Backoff(base=0.5, cap=30.0)
    for share in earlier:
        assert 0 <= backoff.next(share) < 30.0
    assert backoff.next(fraction) == pytest.approx(fraction * min(30.0, 0.5 * 2 ** len(earlier)))


def test_a_reset_makes_the_waits_short_again() -> None:
    backoff = Backoff(base=1.0, cap=30.0)
    for _ in range(5):
        backoff.next(0.5)
    backoff.reset()
    assert backoff.next(0.5) == 0.5


def test_no_number_of_attempts_overflows() -> None:
    assert Backoff(attempts=10**9).next(0.5) == 15.0
