"""The audit of the chaos run finds each kind of violation, and none where there is none.

Each test takes a history in which all is well and breaks one thing in it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.audit import LONGEST, PARTIALS, SLACK, audit, lateness
from tests.chaos.cluster import exceptions_in
from tests.chaos.history import Answer, Call, Disturbance, History, Leased, Received, load
from tests.chaos.journal import Journal


def good() -> History:
    """Three participants; one call of each kind that matters. Everything happened at its time."""
    history = History()

    def asked(call: Call, **answered: str) -> None:
        history.calls[call.id] = replace(call, ends=1, how="outcome", ended=call.began + 0.5)
        for number, (participant, what) in enumerate(answered.items()):
            nonce = f"{call.id}-{participant}"
            history.received.append(Received(participant, call.id, nonce, call.began))
            if what:
                answer = Answer(participant, call.id, nonce, what, call.began, check=10 + number, weight=2.0)
                history.answers.append(answer)

    asked(
        Call(
            "run",
            "s0.1",
            "run",
            ["p000", "p001"],
            0.9,
            1.0,
            told=[["p000", "result", "run", "run-p000", True], ["p001", "failure", "run run-p001"]],
        ),
        p000="result",
        p001="failure",
    )
    asked(
        Call(
            "sum",
            "s0.1",
            "reduce",
            ["p000", "p002"],
            1.9,
            2.0,
            reducer="sum",
            told=[["p000", "folded"], ["p002", "folded"]],
            sums={"seat": [1, 0, 1], "check": [21]},
            weight=4.0,
        ),
        p000="result",
        p002="result",
    )
    asked(
        Call(
            "mean",
            "s1.1",
            "reduce",
            ["p001", "p002"],
            2.9,
            3.0,
            reducer="weighted_mean",
            told=[["p001", "folded"], ["p002", "folded"]],
            sums={"seat": [0, 0.5, 0.5], "check": [10.5]},
            weight=4.0,
        ),
        p001="result",
        p002="result",
    )
    asked(
        Call(
            "quorum",
            "s1.1",
            "stream",
            ["p000", "p001"],
            3.9,
            4.0,
            quorum=1,
            told=[["p000", "result", "quorum", "quorum-p000", True], ["p001", "cancelled"]],
        ),
        p000="result",
        p001="",
    )
    asked(
        Call("late", "s1.1", "single", ["p002"], 4.9, 5.0, timeout=0.5, told=[["p002", "timed out"]]),
        p002="result",
    )
    asked(Call("lost", "s1.1", "single", ["p002"], 5.9, 6.0, told=[["p002", "lost"]]), p002="result")
    history.disturbances = [Disturbance("worker-kill", 6.1, 6.4, frozenset({"p002"}), "worker")]
    history.leases = [Leased("a", 1, [("p000", 5)], 1.0, 2.0), Leased("b", 1, [("p000", 5)], 2.0, 3.0)]
    return history


def rules(history: History) -> set[str]:
    return {violation.rule for violation in audit(history)}


def test_nothing_is_found_where_all_is_well() -> None:
    assert audit(good()) == []


def test_a_call_that_never_ends() -> None:
    history = good()
    history.calls["run"].ends, history.calls["run"].ended, history.calls["run"].how = 0, None, ""
    assert rules(history) == {"each call ends once"}
    history.killed["s0.1"] = 1.2
    assert audit(history) == [], "its script was killed"


def test_a_call_that_ends_twice() -> None:
    history = good()
    history.calls["run"].ends = 2
    assert rules(history) == {"each call ends once"}


def test_a_call_that_raises_what_it_should_not() -> None:
    history = good()
    history.calls["run"].how, history.calls["run"].why = "error", "KeyError(7)"
    (violation,) = audit(history)
    assert "KeyError(7)" in str(violation)


@pytest.mark.parametrize("change", ["none", "two", "a stranger's"])
def test_a_participant_that_has_not_exactly_one_outcome(change: str) -> None:
    history = good()
    told = history.calls["lost"].told
    match change:
        case "none":
            told.clear()
        case "two":
            told.append(["p002", "lost"])
        case _:
            told.append(["p000", "failure", "?"])
    assert "each participant has one outcome" in rules(history)


@pytest.mark.parametrize(
    "entry",
    [
        ["p000", "result", "run", "nobody's", True],
        ["p000", "result", "run", "run-p001", True],  # that was a failure
        ["p000", "result", "run", "mean-p001", True],  # of another participant
        ["p000", "result", "quorum", "quorum-p000", True],  # the answer to another call
        ["p000", "result", "quorum", "run-p000", True],  # it says itself that it is for another call
        ["p000", "result", "run", "run-p000", False],  # damaged on the way
    ],
)
def test_a_result_that_is_not_the_participants_own(entry: list[object]) -> None:
    history = good()
    history.calls["run"].told[0] = entry
    assert rules(history) == {"results are the participants own"}


def test_a_result_that_is_counted_twice() -> None:
    history = good()
    run = history.calls["run"]
    run.asked.append("p000")
    run.told.append(run.told[0])
    assert rules(history) == {"results are the participants own"}


def test_a_failure_that_the_participant_never_told() -> None:
    history = good()
    history.calls["run"].told[1][2] = "the worker could not be reached"
    assert rules(history) == {"failures are the participants own"}
    history = good()
    history.calls["run"].told[1][2] = "run another-nonce"
    assert rules(history) == {"failures are the participants own"}


def test_a_result_that_does_not_fit_may_be_a_failure() -> None:
    history = good()
    call = history.calls["sum"]
    call.told[1] = ["p002", "failure", "other tensors than most"]
    call.sums, call.weight = {"seat": [1, 0, 0], "check": [10]}, 2.0
    assert rules(history) == {"failures are the participants own"}
    odd = next(answer for answer in history.answers if answer.call == "sum" and answer.participant == "p002")
    history.answers[history.answers.index(odd)] = replace(odd, odd=True)
    assert audit(history) == []


@pytest.mark.parametrize(
    ("call", "sums", "weight"),
    [
        ("sum", {"seat": [1, 0, 0], "check": [21]}, 4.0),  # one lacks
        ("sum", {"seat": [1, 1, 1], "check": [21]}, 4.0),  # one too many
        ("sum", {"seat": [1, 0, 2], "check": [21]}, 4.0),  # one twice
        ("sum", {"seat": [1, 0, 1], "check": [22]}, 4.0),  # not what was sent for this call
        ("sum", {"seat": [1, 0, 1], "check": [21]}, 6.0),
        ("sum", {}, 4.0),
        ("mean", {"seat": [0, 0.5, 0.25], "check": [10.5]}, 4.0),
    ],
)
def test_a_sum_that_is_not_that_of_those_it_names(
    call: str, sums: dict[str, list[float]], weight: float
) -> None:
    history = good()
    history.calls[call].sums, history.calls[call].weight = sums, weight
    assert rules(history) == {"sums show who is in them"}


def test_somebody_who_is_folded_in_without_having_answered() -> None:
    history = good()
    history.answers = [each for each in history.answers if (each.call, each.participant) != ("sum", "p002")]
    assert rules(history) == {"sums show who is in them"}


def test_a_sum_of_nobody() -> None:
    history = good()
    history.calls["sum"].told = [["p000", "lost"], ["p002", "lost"]]
    assert "sums show who is in them" in rules(history)


@pytest.mark.parametrize(
    "received",
    [
        Received("p000", "run", "again", 1.0),
        Received("p002", "run", "not for it", 1.0),
        Received("p000", "nobody's", "?", 1.0),
        Received("p000", "mean", "damaged", 3.0, intact=False),
        Received("p001", "lost", "another's", 3.0, addressed=False),
    ],
)
def test_an_instruction_that_comes_twice_or_damaged_or_to_others(received: Received) -> None:
    history = good()
    history.received.append(received)
    assert rules(history) == {"instructions arrive once and whole"}


def test_a_loss_without_a_fault() -> None:
    history = good()
    history.disturbances = []
    assert rules(history) == {"outcomes have their cause"}
    for harmless in (
        Disturbance("worker-kill", 6.1, 6.4, frozenset({"p001"})),  # it hit others
        Disturbance("worker-term", 6.1, 6.4, frozenset()),  # it is graceful
        Disturbance("worker-kill", 7.0, 8.0, None),  # later
        Disturbance("worker-kill", 1.0, 5.0, None),  # before the participants were got
    ):
        history.disturbances = [harmless]
        assert rules(history) == {"outcomes have their cause"}, harmless
    history.disturbances = [Disturbance("coordinator-kill", 6.1, 6.4, None)]
    assert audit(history) == []


def test_a_drain_may_cost_what_begins_after_it_and_not_what_runs() -> None:
    history = good()
    (lost,) = (call for call in history.calls.values() if any(kind == "lost" for _, kind, *_ in call.told))
    history.disturbances = [Disturbance("drain", lost.began + 0.01, lost.began + 5.0)]
    assert rules(history) == {"outcomes have their cause"}
    history.disturbances = [Disturbance("drain", lost.began - 0.01, lost.began + 5.0)]
    assert audit(history) == []


def test_a_timeout_before_the_time() -> None:
    history = good()
    history.calls["late"].ended = 5.3
    assert rules(history) == {"outcomes have their cause"}
    history.calls["late"].timeout = None
    assert rules(history) == {"outcomes have their cause"}


def test_a_call_that_is_cancelled_without_a_quorum() -> None:
    history = good()
    history.calls["quorum"].quorum = 2
    assert rules(history) == {"outcomes have their cause"}
    history.calls["quorum"].quorum = None
    assert rules(history) == {"outcomes have their cause"}


def test_a_coordinator_that_is_not_gone() -> None:
    history = good()
    history.calls["lost"].how, history.calls["lost"].told = "gone", []
    assert rules(history) == {"outcomes have their cause"}
    history.disturbances.append(Disturbance("coordinator-kill", 6.3, 7.0, None))
    assert audit(history) == []


def test_a_call_that_ends_long_after_its_timeout() -> None:
    history = good()
    history.calls["late"].ended = 5.5 + SLACK + 0.1
    assert rules(history) == {"calls end in time"}
    history.disturbances.append(Disturbance("coordinator-pause", 4.0, 5.5, holds_up="coordinator"))
    assert audit(history) == []


def test_only_reducing_calls_may_wait_for_a_worker() -> None:
    history = good()
    history.disturbances = [
        Disturbance("worker-stop", 1.0, 3.0, holds_up="worker"),
        Disturbance("worker-pause", 2.0, 2.5, holds_up="worker"),  # at the same time: it counts once
        Disturbance("cut-some", 6.0, 6.4, frozenset({"p002"})),
    ]
    for name in ("sum", "late"):
        call = history.calls[name]
        call.timeout, call.ended = 0.5, call.began + 0.5 + SLACK + 0.5
    (violation,) = audit(history)
    assert "late ended" in violation.text
    history.calls["sum"].ended = 3.0 + PARTIALS + 0.5 + SLACK + 0.1
    assert len(audit(history)) == 2


def test_a_call_without_a_timeout_that_takes_for_ever() -> None:
    history = good()
    history.calls["run"].ended = 1.0 + LONGEST + SLACK + 0.1
    assert rules(history) == {"calls end in time"}


def test_a_call_that_goes_on_after_it_was_given_up() -> None:
    history = good()
    call = history.calls["run"]
    call.how, call.told, call.since, call.ended = "given up", [], 1.5, 1.5 + SLACK + 0.1
    assert rules(history) == {"calls end in time"}


def test_a_member_that_two_have_leased() -> None:
    history = good()
    history.leases[1] = replace(history.leases[1], since=1.9)
    assert rules(history) == {"nobody is leased twice"}
    history.leases[1] = replace(history.leases[1], coordinator=2)
    assert audit(history) == [], "keys are those of one life of the coordinator"


def test_what_those_who_took_part_complain_of_counts() -> None:
    history = good()
    history.complaints.append("participant p000 was refused")
    assert rules(history) == {"told by those who took part"}


def test_how_late_timeouts_are() -> None:
    history = good()
    history.calls["late"].ended = 5.75
    assert lateness(history) == [pytest.approx(0.25)]
    history.disturbances.append(Disturbance("coordinator-pause", 5.1, 5.2, holds_up="coordinator"))
    assert lateness(history) == []


def test_journals_are_read_back(tmp_path: Path) -> None:
    participant = Journal(tmp_path / "participant-p000.jsonl")
    participant.write("received", call="s0.1.1", nonce="n", intact=True, addressed=True)
    participant.write("answered", call="s0.1.1", nonce="n", what="result", check=3, weight=1.0, odd=False)
    participant.write("refused", why="an older one")
    script = Journal(tmp_path / "script-s0.1.jsonl")
    script.write(
        "begin",
        call="s0.1.1",
        kind="run",
        asked=["p000"],
        acquired=0.5,
        timeout=2.0,
        quorum=None,
        cancel=None,
    )
    script.write("end", call="s0.1.1", how="outcome", told=[["p000", "result", "s0.1.1", "n", True]])
    script.write("leased", lease="s0.1.lease2", members=[["p000", 7]], coordinator=1)
    last = script.write("twice", participants=["p000", "p000"])
    for journal in (participant, script):
        journal.close()
    with (tmp_path / "script-s0.1.jsonl").open("ab") as file:
        file.write(b'{"t":9.0,"event":"le')  # cut off
    history = load(tmp_path, [], {})
    assert history.calls["s0.1.1"].how == "outcome"
    assert history.received[0].participant == history.answers[0].participant == "p000"
    (lease,) = history.leases
    assert lease.until == pytest.approx(last, abs=1e-3), "a lease that nobody released ends with its script"
    assert [violation.rule for violation in audit(history)] == ["told by those who took part"] * 2


def test_exceptions_are_found_in_logs() -> None:
    log = "all is well\nTraceback (most recent call last):\n  File ...\nKeyError: 7\n"
    assert ["KeyError: 7" in text for text in exceptions_in(log)] == [True]
    record = '{"message": "a bug", "exception": "Traceback (most recent call last):\\nKeyError: 7"}'
    assert ["KeyError: 7" in text for text in exceptions_in(f'{{"message": "fine"}}\n{record}\n')] == [True]
    assert exceptions_in('{"message": "fine"}\nworker 1 ended\n') == []
