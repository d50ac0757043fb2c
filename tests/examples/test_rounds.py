"""The digits example's rounds on a real cluster: reduced and collected, and what faults cost them."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from click.testing import CliRunner

from coordinator import Cohort, Coordinator, instruction, to_arrays
from examples.digits import ablation, data, model, participant
from examples.digits.cluster import WHERE, Trainer
from examples.digits.model import Parameters
from examples.digits.rounds import run_round
from examples.digits.show import Display
from examples.digits.train import describe, explain
from manager.api.outcome import Progress
from participant_sdk import Instruction, Participant, Result
from participant_sdk.participant import run_all
from tests.support import PATIENCE, eventually

both_ways = pytest.mark.parametrize("collect", [False, True], ids=["reduced", "collected"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Coordinator[Trainer]]:
    """Two workers; each test brings its own participants."""
    with Coordinator(2, "127.0.0.1:0", Trainer, control="127.0.0.1:0", log_level="warning") as coordinator:
        yield coordinator


# The same model, wherever it is averaged


def test_the_ablation_finds_the_same_accuracy_in_every_round(cluster: Coordinator[Trainer]) -> None:
    with taking_part(cluster, participant.participants()):
        command = ["--control", cluster.control, "--rounds", "10"]
        ended = CliRunner().invoke(ablation.main, command, catch_exceptions=False)

    assert ended.exit_code == 0, ended.output
    found = re.findall(r"round (..)  accuracy (0\.\d{6}) reduced  (0\.\d{6}) collected", ended.output)
    assert [number for number, _, _ in found] == [f"{number:2}" for number in range(1, 11)], ended.output
    for _, reduced, collected in found:
        assert float(reduced) == pytest.approx(float(collected), rel=0, abs=1e-6)
    assert float(found[-1][1]) > 0.9
    assert "largest difference: accuracy 0, parameters " in ended.output


def test_the_ablation_says_so_if_somebody_does_not_answer(cluster: Coordinator[Trainer]) -> None:
    with taking_part(cluster, [good(0), failing()]):
        command = ["--control", cluster.control, "--participants", "2"]
        ended = CliRunner().invoke(ablation.main, command, catch_exceptions=False)

    assert ended.exit_code == 1
    assert "failing failed: MemoryError: out of memory" in ended.output
    assert "round 1 can't be compared: not all have answered" in ended.output


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        pytest.param(np.float64, 1e-12, id="float64"),  # rounding errors of 20 products and sums
        pytest.param(np.float32, 2.0**-23, id="float32"),  # as it is: neighbouring numbers, if not the same
    ],
)
def test_reduced_and_collected_are_the_same_model(
    cluster: Coordinator[Trainer], dtype: type[np.float64 | np.float32], tolerance: float
) -> None:
    start: Parameters = {name: array.astype(dtype) for name, array in model.initial(data.SEED).items()}
    with taking_part(cluster, participant.participants()) as cohort:
        reduced = run_round(cohort, 1, start)
        collected = run_round(cohort, 1, start, collect=True)

    assert (reduced.answered, collected.answered) == (20, 20)
    assert reduced.parameters.keys() == collected.parameters.keys() == start.keys()
    for name, array in reduced.parameters.items():
        assert array.dtype == collected.parameters[name].dtype == dtype
        np.testing.assert_allclose(array, collected.parameters[name], rtol=tolerance, atol=1e-14)


def test_the_same_instruction_has_the_same_result_to_the_last_bit(cluster: Coordinator[Trainer]) -> None:
    settings = {"round": 3, "epochs": 5, "batch_size": 10, "learning_rate": 0.2}
    message = instruction("train", config=settings, tensors=model.initial(data.SEED))
    with taking_part(cluster, participant.participants()) as cohort:
        first, again = cohort.run(message).results, cohort.run(message).results

    assert len(first) == len(again) == 20
    for trainer, answer in first.items():
        one, other = to_arrays(answer.result.tensors), to_arrays(again[trainer].result.tensors)
        assert all(np.array_equal(one[name], other[name]) for name in one)
        assert answer.result.metrics == again[trainer].result.metrics


@both_ways
def test_the_loss_is_that_of_all_examples_together(cluster: Coordinator[Trainer], collect: bool) -> None:
    start = model.initial(data.SEED)
    with taking_part(cluster, participant.participants()) as cohort:
        done = run_round(cohort, 1, start, collect=collect)

    assert done.loss == pytest.approx(model.loss(start, data.load()[0]), rel=1e-5)
    assert describe(1, 9, 0.5, done) == f"round 1  accuracy 0.500  20 of 20 answered  loss {done.loss:.3f}"


# Faults


@both_ways
def test_who_fails_or_is_lost_costs_only_its_own_contribution(
    cluster: Coordinator[Trainer], capsys: pytest.CaptureFixture[str], collect: bool
) -> None:
    start = model.initial(data.SEED)
    with taking_part(cluster, [good(0)]) as cohort:
        alone = run_round(cohort, 1, start)
    with taking_part(cluster, [good(0), failing(), leaving()]) as cohort:
        done = run_round(cohort, 1, start, collect=collect)

    assert all(np.array_equal(array, alone.parameters[name]) for name, array in done.parameters.items())
    assert done.loss == pytest.approx(alone.loss, rel=1e-12)
    assert describe(1, 10, 0.5, done).startswith("round  1  accuracy 0.500  1 of 3 answered")
    with Display() as display:
        explain(done, display)
    shown = capsys.readouterr().out
    assert "1 failures, 1 lost, 0 timed out, 0 cancelled" in shown
    assert "failing failed: MemoryError: out of memory" in shown


def test_a_model_full_of_nan_is_no_part_of_the_reduced_one(cluster: Coordinator[Trainer]) -> None:
    start = model.initial(data.SEED)
    with taking_part(cluster, [good(0), diverged()]) as cohort:
        done = run_round(cohort, 1, start)

    assert done.answered == 1
    assert all(np.isfinite(array).all() for array in done.parameters.values())
    (failure,) = done.outcome.failures.values()
    assert "holds NaN or infinity" in failure.text


@both_ways
def test_a_round_that_nobody_answers_leaves_the_model_as_it_was(
    cluster: Coordinator[Trainer], collect: bool
) -> None:
    start = model.initial(data.SEED)
    with taking_part(cluster, [failing(), leaving()]) as cohort:
        done = run_round(cohort, 1, start, collect=collect)

    assert done.parameters is start
    assert describe(10, 10, 0.5, done) == "round 10  accuracy 0.500  0 of 2 answered"


# What is shown of a round


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_bar_moves_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)

    with Display() as display:
        display.begin("rounds", total=4)
        display.advance(2, "round 2")
        display.follow(Progress(asked=20, answered=11, failed=2, bytes=0))

    assert "round 2\n" in terminal.getvalue()
    assert "13/20" in terminal.getvalue()


def test_in_a_pipe_there_are_only_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as display:
        display.begin("rounds", total=4)
        display.follow(Progress(asked=20, answered=11, failed=2, bytes=0))
        display.advance(1, "round 1")

    assert capsys.readouterr().out == "round 1  [#####---------------]\n"


def test_a_round_tells_how_many_have_answered(cluster: Coordinator[Trainer]) -> None:
    told: list[Progress] = []
    with taking_part(cluster, [good(0), good(1), failing()]) as cohort:
        run_round(cohort, 1, model.initial(data.SEED), progress=told.append)

    last = told[-1]
    assert (last.asked, last.answered, last.failed) == (3, 2, 1)


# Help


@contextmanager
def taking_part(
    cluster: Coordinator[Trainer], participants: Sequence[Participant]
) -> Iterator[Cohort[Trainer]]:
    """Connects them for as long as the block lasts, in a thread. The cluster has no others meanwhile."""
    thread = threading.Thread(target=run_all, args=(participants, cluster.listen))
    thread.start()
    try:
        yield cluster.get_participants(len(participants), where=WHERE, timeout=PATIENCE)
    finally:
        for each in participants:
            each.stop()
        thread.join()
    eventually(lambda: cluster.status().participants == 0, what="an empty pool after the test")


def good(number: int) -> Participant:
    examples, _ = data.load()
    return participant.make_participant(number, examples.take(data.split(examples.labels)[number]))


def failing() -> Participant:
    member = _digits("failing")

    @member.on("train")
    def train(_: Instruction) -> Result:
        raise MemoryError("out of memory")

    return member


def leaving() -> Participant:
    """One that leaves in the middle of its work."""
    member = _digits("leaving")

    @member.on("train")
    def train(_: Instruction) -> None:
        member.stop()

    return member


def diverged() -> Participant:
    member = _digits("diverged")

    @member.on("train")
    def train(instruction: Instruction) -> Result:
        tensors = {name: np.full_like(array, np.nan) for name, array in instruction.tensors.items()}
        return Result(tensors=tensors, weight=10, metrics={"loss": 1.0})

    return member


def _digits(name: str) -> Participant:
    return Participant(name, {**WHERE, "examples": "10"})
