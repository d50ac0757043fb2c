"""manager/liveness.py: whose silence counts, and whose does not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from manager.liveness import Liveness

LIMIT = 3.0


def test_silence_up_to_the_limit_is_no_death() -> None:
    liveness = Liveness(LIMIT, 0.0)
    assert not any(liveness.dead(n / 10) for n in range(31))
    assert liveness.dead(3.1)


def test_a_word_begins_the_count_anew() -> None:
    liveness = Liveness(LIMIT, 0.0)
    for tenth in range(100):
        if tenth % 20 == 0:
            liveness.heard(tenth / 10)
        assert not liveness.dead(tenth / 10)


def test_who_was_away_begins_to_count_when_it_is_back() -> None:
    liveness = Liveness(LIMIT, 0.0)
    assert not liveness.dead(1.0)
    assert not liveness.dead(60.0)
    assert liveness.silence(60.0) == 0.0
    assert not any(liveness.dead(60 + n / 10) for n in range(31))
    assert liveness.dead(63.1)


@given(st.lists(st.floats(0.01, 1.4), min_size=4, max_size=60))
def test_a_peer_that_never_speaks_is_found_dead_within_the_limit_and_one_look(steps: list[float]) -> None:
    liveness, now = Liveness(LIMIT, 0.0), 0.0
    for step in steps:
        now += step
        assert liveness.dead(now) == (now > LIMIT)
