"""What must not be, whatever was killed when: a history in, violations out. Pure.

The promises are those of DESIGN's: one outcome for each participant of each call, told by nobody but the
participant itself, in time. Where a call may end in more than one way, because an answer and a fault crossed,
any of them is right: a participant that answered before its stream broke may be *lost*. What is not right is
an outcome without its cause.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.chaos.history import PROBE, Answer, Call, History

SLACK = 2.5
"""Seconds by which a call may end late on a machine under load, before it is a violation. How late they are
as a rule is in the report."""

LONGEST = 60.0
"""Seconds in which a call without a timeout has ended: handlers are short, but calls queue up."""

ENDS_THE_COORDINATOR = frozenset({"coordinator-kill", "drain", "stop"})

PARTIALS = 5.0
"""Seconds that a reducing call may wait longer for the partial of a worker that is stopped, until that is
found and killed."""


@dataclass(frozen=True)
class Violation:
    rule: str
    text: str

    def __str__(self) -> str:
        return f"[{self.rule}] {self.text}"


class _Audit:
    def __init__(self, history: History, slack: float = SLACK) -> None:
        self.history = history
        self.slack = slack
        self.answer_of: dict[str, Answer] = {answer.nonce: answer for answer in history.answers}
        self.answers_to: dict[tuple[str, str], list[Answer]] = defaultdict(list)
        for answer in history.answers:
            self.answers_to[answer.call, answer.participant].append(answer)
        self.odd_calls = {answer.call for answer in history.answers if answer.odd}

    def evidence(self, call: Call, participant: str = "") -> str:
        """Whatever the journals say about it."""
        ended = "never" if call.ended is None else f"{call.ended:.3f}"
        told = [entry for entry in call.told if entry[0] == participant] if participant else []
        received = [
            f"received {entry.nonce} at {entry.at:.3f}"
            for entry in self.history.received
            if participant and entry.call == call.id and entry.participant == participant
        ]
        answered = [
            f"answered {answer.nonce} ({answer.what}) at {answer.at:.3f}"
            for answer in self.answers_to.get((call.id, participant), [])
        ]
        faults = [
            f"{fault.kind} {fault.start:.3f}-{fault.end:.3f}"
            for fault in self.history.disturbances
            if fault.end >= call.acquired and (call.ended is None or fault.start <= call.ended)
        ]
        return (
            f"; {call.kind} {call.id} of {len(call.asked)}, acquired {call.acquired:.3f}, "
            f"began {call.began:.3f}, ended {ended} ({call.how or 'no end'}; "
            f"timeout {call.timeout}, quorum {call.quorum}); "
            + (
                f"{participant}: told {told}, {', '.join(received + answered) or 'nothing'}; "
                if participant
                else ""
            )
            + f"faults meanwhile: {', '.join(faults) or 'none'}"
        )

    # One outcome each

    def each_call_ends_once(self) -> Iterator[str]:
        for call in self.history.calls.values():
            if call.ends > 1:
                yield f"{call.id} ended {call.ends} times{self.evidence(call)}"
            elif call.ends == 0 and call.script not in self.history.killed:
                yield f"{call.id} never ended{self.evidence(call)}"
            elif call.how == "error":
                yield f"{call.id} raised {call.why}{self.evidence(call)}"

    def each_participant_has_one_outcome(self) -> Iterator[str]:
        for call in self.history.calls.values():
            if call.how != "outcome":
                continue
            told = Counter(entry[0] for entry in call.told)
            asked = Counter(call.asked)
            for participant in told | asked:
                if told[participant] != asked[participant]:
                    yield (
                        f"{participant} has {told[participant]} outcomes of {call.id}, which asked it "
                        f"{asked[participant]} times{self.evidence(call, participant)}"
                    )

    # Nothing that the participant didn't say

    def results_are_the_participants_own(self) -> Iterator[str]:
        used: dict[str, str] = {}
        for call in self.history.calls.values():
            for participant, kind, *rest in call.told:
                if kind != "result":
                    continue
                said_of, nonce, intact = rest
                answer = self.answer_of.get(nonce)
                wrong = ""
                if answer is None or answer.what != "result":
                    wrong = f"nobody sent the result {nonce} that {participant} is said to have sent"
                elif answer.participant != participant:
                    wrong = f"the result of {participant} for {call.id} is that of {answer.participant}"
                elif not call.id == answer.call == said_of:
                    wrong = f"{participant} gave for {call.id} the result for {answer.call}"
                elif not intact:
                    wrong = f"the result of {participant} for {call.id} isn't what it sent"
                elif nonce in used:
                    wrong = f"the result {nonce} was counted for {used[nonce]} and for {call.id}"
                if wrong:
                    yield wrong + self.evidence(call, participant)
                used[nonce] = call.id

    def failures_are_the_participants_own(self) -> Iterator[str]:
        for call in self.history.calls.values():
            for participant, kind, *rest in call.told:
                if kind != "failure":
                    continue
                answers = self.answers_to.get((call.id, participant), [])
                own = any(
                    answer.what == "failure" and rest[0] == f"{call.id} {answer.nonce}" for answer in answers
                )
                # Where somebody's tensors are others than most, their result counts as a failure.
                unfit = call.id in self.odd_calls and any(answer.what == "result" for answer in answers)
                if not own and not unfit:
                    yield (
                        f"{participant} never said that it failed with {rest[0]!r}"
                        f"{self.evidence(call, participant)}"
                    )

    def sums_show_who_is_in_them(self) -> Iterator[str]:
        for call in self.history.calls.values():
            if call.how == "outcome" and call.kind == "reduce":
                yield from (text + self.evidence(call) for text in self._wrong_in_sum(call))

    def _wrong_in_sum(self, call: Call) -> Iterator[str]:
        folded = [participant for participant, kind, *_ in call.told if kind == "folded"]
        if not folded:
            if call.sums or call.weight:
                yield f"nobody is folded into {call.id}, and yet there is a sum"
            return
        answers: list[Answer] = []
        for participant in folded:
            sent = [
                answer
                for answer in self.answers_to.get((call.id, participant), [])
                if answer.what == "result"
            ]
            if not sent:
                yield f"{participant} is folded into {call.id}, and never sent a result"
                return
            answers.append(sent[0])
        weight = sum(answer.weight for answer in answers)
        if call.weight != weight:
            yield f"{call.id} has weight {call.weight}; those folded sent {weight}"
        share: Callable[[Answer], float] = {
            "sum": lambda answer: 1.0,
            "mean": lambda answer: 1.0 / len(answers),
            "weighted_mean": lambda answer: answer.weight / weight,
        }[call.reducer]
        seats = call.sums.get("seat") or call.sums.get("odd") or []
        wanted = {int(answer.participant[1:]): share(answer) for answer in answers}
        for slot, value in enumerate(seats):
            if not math.isclose(value, wanted.pop(slot, 0.0), rel_tol=1e-9, abs_tol=1e-12):
                yield f"in the {call.reducer} of {call.id} p{slot:03} counts {value}, and it should not"
        if wanted:
            yield f"the {call.reducer} of {call.id} lacks {sorted(wanted)}"
        check = sum(share(answer) * answer.check for answer in answers)
        if not math.isclose(call.sums.get("check", [0.0])[0], check, rel_tol=1e-9):
            yield f"{call.id} sums up to {call.sums.get('check')}, and those folded sent {check}"

    def instructions_arrive_once_and_whole(self) -> Iterator[str]:
        times = Counter((entry.call, entry.participant) for entry in self.history.received)
        for entry in self.history.received:
            call = self.history.calls.get(entry.call)
            if entry.call == PROBE:
                continue
            if call is None:
                yield f"{entry.participant} received {entry.call}, which nobody began"
                continue
            wrong = ""
            if not entry.intact:
                wrong = f"{entry.participant} received something else than {call.id} sent"
            elif entry.participant not in call.asked or not entry.addressed:
                wrong = f"{entry.participant} received {call.id}, which was for others"
            if wrong:
                yield wrong + self.evidence(call, entry.participant)
        for (call_id, participant), count in times.items():
            if count > 1 and call_id in self.history.calls:
                about = self.evidence(self.history.calls[call_id], participant)
                yield f"{participant} received {call_id} {count} times{about}"

    # No outcome without its cause

    def outcomes_have_their_cause(self) -> Iterator[str]:
        for call in self.history.calls.values():
            if call.how == "gone" and not any(
                fault.kind in ENDS_THE_COORDINATOR
                and fault.start <= (call.ended or 0.0) <= fault.end + self.slack
                for fault in self.history.disturbances
            ):
                yield f"{call.id} was told that the coordinator is gone, and it wasn't{self.evidence(call)}"
            if call.how != "outcome" or call.ended is None:
                continue
            kinds = Counter(kind for _, kind, *_ in call.told)
            results = kinds["result"] + kinds["folded"]
            if kinds["timed out"] and (call.timeout is None or call.ended - call.began < call.timeout - 0.01):
                yield f"{call.id} has participants that timed out before the time{self.evidence(call)}"
            if kinds["cancelled"] and (
                call.quorum is None or (results < call.quorum and not self._may_lack(call))
            ):
                yield f"{call.id} was cancelled with {results} results{self.evidence(call)}"
            if self._begun_in_a_drain(call):
                continue  # nobody is there any more, of which its script may have heard or not
            for participant, kind, *_ in call.told:
                if kind == "lost" and not self._was_touched(participant, call.acquired, call.ended):
                    yield (
                        f"{participant} was lost to {call.id}, and no fault had touched it"
                        f"{self.evidence(call, participant)}"
                    )

    def _begun_in_a_drain(self, call: Call) -> bool:
        return any(
            fault.kind == "drain" and fault.start <= call.began <= fault.end
            for fault in self.history.disturbances
        )

    def _was_touched(self, participant: str, since: float, until: float) -> bool:
        return any(
            fault.start <= until
            and fault.end >= since
            and (fault.touched is None or participant in fault.touched)
            for fault in self.history.disturbances
        )

    def _may_lack(self, call: Call) -> bool:
        """A reducing call may have fewer than its quorum if a worker took some of them with it, or if some
        turned out not to fit."""
        return call.kind == "reduce" and (
            call.id in self.odd_calls or any(kind == "lost" for _, kind, *_ in call.told)
        )

    # In time

    def calls_end_in_time(self) -> Iterator[str]:
        for call in self.history.calls.values():
            if call.ended is None or call.how not in ("outcome", "given up"):
                continue
            if call.how == "given up":
                late = call.ended - call.since
                if late > self.slack:
                    yield f"{call.id} was given up, and ended {late:.1f} s later{self.evidence(call)}"
                continue
            allowed = LONGEST if call.timeout is None else call.timeout
            late = call.ended - call.began - allowed - self.held_up(call)
            if late > self.slack:
                yield f"{call.id} ended {late:.1f} s too late{self.evidence(call)}"

    def held_up(self, call: Call) -> float:
        """Seconds of a call in which nobody could decide anything."""
        until = call.began if call.ended is None else call.ended
        held_up, since = 0.0, call.began
        for start, end in sorted(self._standstills(call)):
            held_up += max(0.0, min(until, end) - max(since, start))
            since = max(since, end)  # none counts twice
        return held_up

    def _standstills(self, call: Call) -> Iterator[tuple[float, float]]:
        for fault in self.history.disturbances:
            if fault.holds_up == "coordinator":
                yield fault.start, fault.end
            elif fault.holds_up == "worker" and call.kind == "reduce":
                yield fault.start, fault.end + PARTIALS

    # Leases

    def nobody_is_leased_twice(self) -> Iterator[str]:
        by_member: dict[tuple[int, int], list[tuple[float, float, str, str]]] = defaultdict(list)
        for lease in self.history.leases:
            for participant, key in lease.members:
                by_member[lease.coordinator, key].append((lease.since, lease.until, lease.id, participant))
        for held in by_member.values():
            held.sort()
            for before, after in itertools.pairwise(held):
                if after[0] < before[1]:
                    yield (
                        f"{before[3]} was leased to {before[2]} ({before[0]:.3f}-{before[1]:.3f}) and to "
                        f"{after[2]} ({after[0]:.3f}-{after[1]:.3f}) at the same time"
                    )


def audit(history: History, slack: float = SLACK) -> list[Violation]:
    """Everything that is wrong in it. Calls may end ``slack`` seconds late."""
    auditor = _Audit(history, slack)
    rules = (
        auditor.each_call_ends_once,
        auditor.each_participant_has_one_outcome,
        auditor.results_are_the_participants_own,
        auditor.failures_are_the_participants_own,
        auditor.sums_show_who_is_in_them,
        auditor.instructions_arrive_once_and_whole,
        auditor.outcomes_have_their_cause,
        auditor.calls_end_in_time,
        auditor.nobody_is_leased_twice,
    )
    found = [Violation(rule.__name__.replace("_", " "), text) for rule in rules for text in rule()]
    return found + [Violation("told by those who took part", text) for text in history.complaints]


def lateness(history: History) -> list[float]:
    """By how many seconds calls that ran into their timeout ended too late, where nothing held them up."""
    auditor = _Audit(history)
    return [
        call.ended - call.began - call.timeout
        for call in history.calls.values()
        if call.ended is not None
        and call.timeout is not None
        and call.how == "outcome"
        and any(kind == "timed out" for _, kind, *_ in call.told)
        and not auditor.held_up(call)
    ]
