"""What waits for a report to be heard is done once, in order, and not before, unless nobody hears."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from manager.link.confirmations import Confirmations


class Asked:
    """Confirmations, and what has been done."""

    def __init__(self) -> None:
        self.confirmations = Confirmations()
        self.done: list[int] = []
        self._count = 0

    def add(self) -> None:
        number = self._count
        self._count += 1
        self.confirmations.add(lambda: self.done.append(number))

    def heard(self, number: int) -> None:
        for callback in self.confirmations.heard(number):
            callback()

    def give_up(self) -> None:
        for callback in self.confirmations.give_up():
            callback()


def test_what_is_reported_waits_until_that_is_heard() -> None:
    asked = Asked()
    asked.add()
    asked.heard(7)
    assert asked.done == [], "it has not even been reported"
    asked.confirmations.reported(3)
    asked.add()
    asked.confirmations.reported(4)
    asked.heard(2)
    assert asked.done == []
    asked.heard(3)
    assert asked.done == [0]
    assert asked.confirmations
    asked.heard(4)
    assert asked.done == [0, 1]
    assert not asked.confirmations


STEPS = st.lists(st.tuples(st.sampled_from(["add", "report", "hear", "give up"]), st.integers(0, 3)))


@given(STEPS)
def test_all_is_done_once_in_order_and_never_too_early(steps: list[tuple[str, int]]) -> None:
    asked, sent, heard, added = Asked(), 0, 0, 0
    needs: list[int | None] = []  # which report each waits for; None: not reported
    for step, number in steps:
        if step == "add":
            asked.add()
            needs.append(None)
            added += 1
        elif step == "report":
            sent += 1
            asked.confirmations.reported(sent)
            needs = [sent if need is None else need for need in needs]
        elif step == "hear":
            heard = min(sent, heard + number)
            asked.heard(heard)
            assert asked.done == list(range(len(asked.done)))
            assert all(need is None or need > heard for need in needs[len(asked.done) :])
            assert all(need is not None for need in needs[: len(asked.done)])
        else:
            asked.give_up()
            assert asked.done == list(range(added))
            needs = [0] * added
    asked.give_up()
    assert asked.done == list(range(added))
