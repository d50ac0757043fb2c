"""The digits example: its split, its model, its rounds, and all of it as a cluster under honcho."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.digits import data, model, participant, plot, rounds
from examples.digits.averaging import weighted_mean
from examples.digits.data import Examples
from examples.digits.model import Parameters
from tests.examples.procfile import is_png, left_running, start_procfile

# The data


def test_training_and_held_out_examples_are_all_of_the_digits_and_none_twice() -> None:
    training, held_out = data.load()

    images = np.concatenate([training.images, held_out.images])
    assert (len(training), len(held_out)) == (1437, 360)
    assert images.shape == (1797, data.PIXELS)
    assert images.dtype == np.float32
    assert len(np.unique(images, axis=0)) == 1797
    assert (images.min(), images.max()) == (0, 1)


def test_the_digits_are_those_that_scikit_learn_loads() -> None:
    from sklearn.datasets import load_digits  # takes a second

    images, labels = load_digits(return_X_y=True)
    wanted = {
        (image.tobytes(), label) for image, label in zip((images / 16).astype("f4"), labels, strict=True)
    }
    found = {
        (image.tobytes(), label)
        for part in data.load()
        for image, label in zip(part.images, part.labels, strict=True)
    }
    assert found == wanted


def test_without_scikit_learn_a_process_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def files(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", files)

    with pytest.raises(
        SystemExit, match=r"^the digits are those of scikit-learn: pip install '\.\[examples\]'$"
    ):
        data.load()


def test_the_held_out_examples_are_the_same_every_time() -> None:
    (_, first), (_, second) = data.load(), data.load()

    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.labels, second.labels)


@given(seed=st.integers(0, 2**32), shards=st.integers(1, 12), alpha=st.floats(0.2, 100))
def test_each_example_is_dealt_to_exactly_one_shard(seed: int, shards: int, alpha: float) -> None:
    labels = np.random.default_rng(seed).integers(0, data.CLASSES, 1000)

    dealt = data.split(labels, shards, alpha, seed)

    assert len(dealt) == shards
    assert np.array_equal(np.sort(np.concatenate(dealt)), np.arange(1000))
    assert min(map(len, dealt)) >= data.SMALLEST_SHARD


def test_the_same_seed_deals_the_same_shards_and_another_seed_does_not() -> None:
    labels = data.load()[0].labels

    first, again, other = data.split(labels), data.split(labels), data.split(labels, seed=1)

    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_smaller_alpha_deals_less_evenly() -> None:
    labels = data.load()[0].labels

    def share_of_the_commonest_digit(alpha: float) -> float:
        shards = [labels[indices] for indices in data.split(labels, alpha=alpha)]
        return float(np.mean([np.bincount(shard).max() / len(shard) for shard in shards]))

    uneven, chosen, even = map(share_of_the_commonest_digit, (0.1, data.ALPHA, 100))
    assert uneven > chosen > even
    assert even < 0.2


def test_an_impossible_deal_says_so() -> None:
    with pytest.raises(ValueError, match=r"20 examples, dealt out to 20 shards.*take fewer shards"):
        data.split(np.arange(20) % 10)


# The model


def test_the_gradient_is_that_of_finite_differences() -> None:
    rng = np.random.default_rng(1)
    parameters: Parameters = {name: array.astype(np.float64) for name, array in model.initial(1).items()}
    examples = Examples(rng.random((7, data.PIXELS)), rng.integers(0, data.CLASSES, 7))
    step = 1e-6

    _, gradient = model.loss_and_gradient(parameters, examples)

    assert {name: array.shape for name, array in gradient.items()} == {
        name: array.shape for name, array in parameters.items()
    }
    for name, array in parameters.items():
        for index in rng.choice(array.size, size=10, replace=False):
            losses = []
            for sign in (1, -1):
                moved = array.copy()
                moved.flat[index] += sign * step
                losses.append(model.loss_and_gradient({**parameters, name: moved}, examples)[0])
            slope = (losses[0] - losses[1]) / (2 * step)
            assert gradient[name].flat[index] == pytest.approx(slope, rel=1e-4, abs=1e-8), (name, index)


def test_training_lowers_the_loss_and_leaves_the_model_it_started_from_alone() -> None:
    examples = data.load()[0].take(np.arange(100))
    start = model.initial(1)
    before = {name: array.copy() for name, array in start.items()}

    trained = _train(start, examples)

    assert all(np.array_equal(before[name], start[name]) for name in start)
    assert model.loss_and_gradient(trained, examples)[0] < model.loss_and_gradient(start, examples)[0]
    assert all(array.dtype == np.float32 for array in trained.values())


def test_huge_scores_are_no_overflow() -> None:
    parameters = {name: array * np.float32(1e4) for name, array in model.initial(1).items()}

    loss, _ = model.loss_and_gradient(parameters, data.load()[1])  # warnings are errors

    assert np.isfinite(loss)


# Federated averaging


def test_the_mean_of_models_is_weighted() -> None:
    models: list[Parameters] = [{"w": np.array([0, 4], np.float32)}, {"w": np.array([4, 0], np.float32)}]

    mean = weighted_mean(models, [30, 10])

    assert mean["w"].tolist() == [1, 3]
    assert mean["w"].dtype == np.float32


@pytest.mark.parametrize("weights", [[], [0.0, 0.0]])
def test_there_is_no_mean_without_weight(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="more than 0"):
        weighted_mean([model.initial(1)] * len(weights), weights)


def test_averaging_gets_above_093_within_20_rounds_on_uneven_shards() -> None:
    training, held_out = data.load()
    shards = [training.take(indices) for indices in data.split(training.labels)]
    parameters = model.initial(data.SEED)

    for _ in range(20):
        models = [_train(parameters, shard) for shard in shards]
        parameters = weighted_mean(models, [len(shard) for shard in shards])

    assert model.accuracy(parameters, held_out) > 0.93


# The participants' side


@pytest.mark.parametrize(
    ("text", "shards"), [("0-4", range(5)), ("15-19", range(15, 20)), ("7", range(7, 8))]
)
def test_a_process_holds_the_shards_that_it_is_told(
    monkeypatch: pytest.MonkeyPatch, text: str, shards: range
) -> None:
    monkeypatch.setenv("DIGITS_SHARDS", text)

    assert participant.shards_of_this_process() == shards
    assert [member.participant_id for member in participant.participants()] == [
        f"digits-{number:02}" for number in shards
    ]


@pytest.mark.parametrize("text", ["", "x", "4-2", "0-20", "-3"])
def test_shards_that_make_no_sense_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("DIGITS_SHARDS", text)

    with pytest.raises(SystemExit, match="write it like 0-4"):
        participant.shards_of_this_process()


def test_a_hospital_is_one_participant_with_all_shards_of_its_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DIGITS_SHARDS", "4-7")

    one = participant.hospital()

    four = [int(each.attributes["examples"]) for each in participant.participants()]
    assert int(one.attributes["examples"]) == sum(four)
    assert one.participant_id == ""  # its certificate names it


# The picture


def test_the_plot_is_a_png_of_any_number_of_rounds(tmp_path: Path) -> None:
    plot.save(tmp_path / "deep" / "one.png", [0.5], 0.9)
    plot.save(tmp_path / "many.png", [0.5] * 100, 0.9)

    assert is_png(tmp_path / "deep" / "one.png")
    assert is_png(tmp_path / "many.png")


# All of it


def test_the_procfile_trains_a_model_and_ends_by_itself(environment: dict[str, str], tmp_path: Path) -> None:
    code, shown = start_procfile("Procfile", {**environment, "DIGITS_ROUNDS": "3"}, tmp_path / "log")

    assert code == 0, shown
    lines = re.findall(r"round (\d+)  accuracy (0\.\d{3})  20 of 20 answered  loss \d\.\d{3}  \[", shown)
    assert [number for number, _ in lines] == ["1", "2", "3"], shown
    assert float(lines[-1][1]) > 0.85
    assert "20 participants are here, on 2 workers, with 1437 examples" in shown
    assert re.search(r"pooled data  accuracy 0\.9\d\d", shown), shown
    assert "Traceback" not in shown
    assert is_png(tmp_path / "accuracy.png")
    assert left_running(environment) == []


# Help


def _train(parameters: Parameters, examples: Examples) -> Parameters:
    return model.train(
        parameters,
        examples,
        epochs=rounds.EPOCHS,
        batch_size=rounds.BATCH_SIZE,
        learning_rate=rounds.LEARNING_RATE,
        rng=np.random.default_rng(1),
    )
