"""Reducing gives what NumPy or exact arithmetic gives, whatever the order and however it is split."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from manager.reducing.reducers import (
    BUILT_IN,
    Contribution,
    Reducer,
    RefusedError,
    check_allowed,
    decode,
    encode,
    make_reducer,
)
from manager.reducing.schema import decode_schema, describe_mismatch, encode_schema, schema_of
from protos.messages import Plain

Array = npt.NDArray[Any]

FLOATS = ["f2", "f4", "f8"]
SMALL_INTS = ["i1", "i2", "i4", "u1", "u2", "u4", "?"]
POSITIVE = st.floats(0.125, 1000)
INTS = [*SMALL_INTS, "i8", "u8"]


def contribution(
    weight: float = 1.0, metrics: dict[str, Plain] | None = None, **tensors: Any
) -> Contribution:
    return Contribution({name: np.asarray(value) for name, value in tensors.items()}, metrics or {}, weight)


def new(name: str, **options: Plain) -> Reducer:
    return make_reducer(name, options, [])


def frozen(given: Contribution) -> Contribution:
    """A copy, as it comes from the wire."""
    return decode(encode(given))


def spoil(given: Contribution) -> None:
    """Overwrites the memory of its arrays, as when it has been used for something else."""
    for array in given.tensors.values():
        array.view(np.uint8 if array.ndim else array.dtype)[...] = 1


def same(left: Contribution, right: Contribution) -> bool:
    """Equal to the last bit, signs of zero and NaNs included."""
    return (
        [(name, array.dtype, array.shape, array.tobytes()) for name, array in left.tensors.items()]
        == [(name, array.dtype, array.shape, array.tobytes()) for name, array in right.tensors.items()]
        and repr(sorted(left.metrics.items())) == repr(sorted(right.metrics.items()))
        and left.weight == right.weight
    )


def reduced(name: str, groups: Sequence[Sequence[Contribution]], **options: Plain) -> Contribution:
    """Each group folded in a process of its own, the states sent and merged."""
    whole = new(name, **options)
    for group in groups:
        part = new(name, **options)
        for member in group:
            mine = Contribution(
                {n: a.copy() for n, a in member.tensors.items()}, member.metrics, member.weight
            )
            part.fold(mine)
            spoil(mine)
        whole.merge(frozen(part.state()))
    return frozen(whole.finish())


@dataclass
class Case:
    contributions: list[Contribution]
    groups: list[list[Contribution]]  # the same in another order, and split

    @property
    def weights(self) -> list[float]:
        return [each.weight for each in self.contributions]

    def arrays(self, name: str = "x") -> list[Array]:
        return [each.tensors[name] for each in self.contributions]


@st.composite
def cases(
    draw: st.DrawFn,
    dtypes: Sequence[str],
    elements: Callable[[str], st.SearchStrategy[Any] | None] = lambda dtype: None,
    weights: st.SearchStrategy[float] = POSITIVE,
) -> Case:
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    values = elements(dtype)
    count = draw(st.integers(1, 7))
    contributions = [
        contribution(draw(weights), x=draw(hnp.arrays(dtype, shape, elements=values))) for _ in range(count)
    ]
    groups: list[list[Contribution]] = [[] for _ in range(draw(st.integers(1, 3)))]
    for member in draw(st.permutations(contributions)):
        groups[draw(st.integers(0, len(groups) - 1))].append(member)
    return Case(contributions, groups)


def floats(dtype: str) -> st.SearchStrategy[float]:
    """Of very different sizes, and of both signs, so that sums cancel."""
    width = int(dtype[1]) * 8
    largest = {16: 2.0**14, 32: 2.0**100, 64: 2.0**300}[width]
    return st.floats(-largest, largest, width=width, allow_subnormal=False)  # type: ignore[arg-type]


def gamma(k: int, u: Fraction) -> Fraction:
    return k * u / (1 - k * u)


def exactly(array: Array) -> list[Fraction]:
    return [Fraction(value) for value in array.reshape(-1).tolist()]


UNIT = {"float64": Fraction(1, 2**53), "float32": Fraction(1, 2**24)}
TINY = {"float64": Fraction(1, 2**1074), "float32": Fraction(1, 2**149)}


def check_mean(case: Case, answer: Array, dtype: str, weights: list[float]) -> None:
    """Holds the answer against exact fractions: the bound that elementwise.py states, with underflow."""
    sent = case.arrays()[0].dtype
    n = len(weights)
    inner = "float64" if sent.kind != "f" or sent.itemsize == 8 else dtype
    rounded = "float64" if sent.kind != "f" or sent.itemsize == 8 else "float32"
    total = sum(map(Fraction, weights))
    columns = zip(*(exactly(array) for array in case.arrays()), strict=True)
    for computed, column in zip(exactly(answer), columns, strict=True):
        products = [Fraction(weight) * value for weight, value in zip(weights, column, strict=True)]
        mean = sum(products) / total
        bound = gamma(2 * n + 1, UNIT[inner]) * sum(map(abs, products)) / total + n * TINY[inner] / total
        bound += UNIT[rounded] * (abs(mean) + bound) + TINY[rounded]
        assert abs(computed - mean) <= bound


DTYPES = ["float64", "float32"]


@pytest.mark.parametrize("dtype", DTYPES)
@given(cases([*FLOATS, *INTS], lambda dtype: floats(dtype) if dtype in FLOATS else None))
def test_a_weighted_mean_is_within_its_bound_whatever_the_order_and_split(dtype: str, case: Case) -> None:
    answer = reduced("weighted_mean", case.groups, dtype=dtype)
    check_mean(case, answer.tensors["x"], dtype, case.weights)
    assert answer.weight == pytest.approx(math.fsum(case.weights), rel=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@given(cases([*FLOATS, *INTS], lambda dtype: floats(dtype) if dtype in FLOATS else None, st.floats(0, 9)))
def test_a_mean_is_within_its_bound_whatever_the_weights(dtype: str, case: Case) -> None:
    answer = reduced("mean", case.groups, dtype=dtype)
    check_mean(case, answer.tensors["x"], dtype, [1.0] * len(case.weights))
    assert answer.weight == pytest.approx(math.fsum(case.weights), rel=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@given(cases(FLOATS, floats))
def test_a_sum_of_floats_is_within_its_bound(dtype: str, case: Case) -> None:
    answer = reduced("sum", case.groups, dtype=dtype).tensors["x"]
    inner = "float64" if case.arrays()[0].dtype == np.float64 else dtype
    assert answer.dtype.name == inner
    columns = zip(*(exactly(array) for array in case.arrays()), strict=True)
    for computed, column in zip(exactly(answer), columns, strict=True):
        bound = gamma(len(column) - 1, UNIT[inner]) * sum(map(abs, column))
        assert abs(computed - sum(column)) <= bound


def few_bits(dtype: str) -> st.SearchStrategy[Any] | None:
    """Of 64 bits, only what seven of fit into 64 bits."""
    return {"i8": st.integers(-(2**60), 2**60), "u8": st.integers(0, 2**61)}.get(dtype)


@given(cases(INTS, few_bits))
def test_a_sum_of_integers_is_exact(case: Case) -> None:
    answer = reduced("sum", case.groups).tensors["x"]
    assert answer.dtype.name == ("uint64" if case.arrays()[0].dtype == np.uint64 else "int64")
    assert exactly(answer) == list(map(sum, zip(*map(exactly, case.arrays()), strict=True)))


@pytest.mark.parametrize("name", ["mean", "weighted_mean"])
@given(cases(SMALL_INTS, weights=st.integers(1, 1000).map(float)))
def test_means_of_small_integers_round_only_once(name: str, case: Case) -> None:
    weights = case.weights if name == "weighted_mean" else [1.0] * len(case.weights)
    answer = reduced(name, case.groups, dtype="float32").tensors["x"]
    assert answer.dtype == np.float64
    columns = zip(*(exactly(array) for array in case.arrays()), strict=True)
    assert answer.reshape(-1).tolist() == [
        float(sum(map(operator.mul, map(Fraction, weights), column)) / sum(map(Fraction, weights)))
        for column in columns
    ]


@pytest.mark.parametrize(("name", "function"), [("min", np.minimum), ("max", np.maximum)])
@given(cases([*FLOATS, *INTS], lambda dtype: floats(dtype) if dtype in FLOATS else None))
def test_extremes_are_exact_and_keep_the_dtype(name: str, function: np.ufunc, case: Case) -> None:
    answer = reduced(name, case.groups).tensors["x"]
    expected = reduce(function, case.arrays())
    np.testing.assert_array_equal(answer, expected, strict=True)


@pytest.mark.parametrize(
    ("sent", "returned"),
    [("f2", "float32"), ("f4", "float32"), ("f8", "float64"), ("i4", "float64"), ("?", "float64")],
)
@pytest.mark.parametrize("name", ["mean", "weighted_mean"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mean_comes_back_in_the_dtype_that_was_sent(
    name: str, sent: str, returned: str, dtype: str
) -> None:
    answer = reduced(name, [[contribution(x=np.ones(3, sent))]], dtype=dtype)
    assert answer.tensors["x"].dtype.name == returned


def test_float64_is_never_narrowed() -> None:
    exact = 1 + 2.0**-40
    assert reduced("mean", [[contribution(x=[exact])] * 2], dtype="float32").tensors["x"] == [exact]


@pytest.mark.parametrize("size", [8 * 1024, 8 * 1024 + 1, 16 * 1024, 16 * 1024 + 1, 200_000])
@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4"])
def test_tensors_of_many_blocks_are_like_those_of_one(name: str, dtype: str, size: int) -> None:
    random = np.random.default_rng(size)
    arrays = [(random.standard_normal(size) * 100).astype(dtype) for _ in range(3)]
    weights = [1.0, 2.0, 5.0]
    answer = reduced(name, [[contribution(w, x=a)] for w, a in zip(weights, arrays, strict=True)])
    exact = np.array(arrays, np.float64)
    expected = {
        "sum": exact.sum(0),
        "mean": exact.mean(0),
        "weighted_mean": np.average(exact, 0, weights),
        "min": exact.min(0),
        "max": exact.max(0),
    }[name]
    single = dtype == "f4" and answer.tensors["x"].dtype == np.float32
    np.testing.assert_allclose(
        answer.tensors["x"], expected, rtol=1e-7 if single else 1e-12, atol=1e-5 * single
    )


def test_any_layout_is_read() -> None:
    array = np.arange(12.0).reshape(3, 4)
    for variant in (array.T, array[::2], np.asfortranarray(array)):
        answer = reduced("weighted_mean", [[contribution(2, x=variant)], [contribution(2, x=variant)]])
        np.testing.assert_array_equal(answer.tensors["x"], variant)


# Refusals


@st.composite
def misfits(draw: st.DrawFn) -> Contribution:
    """What no reducer takes after a contribution of x, y and n, for a reason or two."""
    x, y = np.ones((2, 2), np.float32), np.ones(20_000)
    n = np.array([5, 6])
    tensors: dict[str, Array] = {"x": x, "y": y, "n": n}
    metrics: dict[str, Plain] = {"loss": 1.0, "hits": 3}
    weight = 1.0
    for kind in draw(st.sets(st.integers(0, 8), min_size=1, max_size=2)):
        match kind:
            case 0:
                tensors["y"] = np.where(np.arange(y.size) == draw(st.integers(0, y.size - 1)), np.nan, 1.0)
            case 1:
                tensors["x"] = np.array([[1, np.inf], [0, 0]], np.float32)
            case 2:
                tensors["x"] = np.ones((4,), np.float32)
            case 3:
                tensors["x"] = np.ones((2, 2))
            case 4:
                del tensors["y"]
                tensors["z"] = y
            case 5:
                tensors["z"] = y
            case 6:
                metrics["loss"] = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
            case 7:
                metrics["hits"] = 2**63
            case 8:
                weight = draw(st.sampled_from([math.nan, math.inf, -1.0, 1.7e308]))
    order = draw(st.permutations(list(tensors)))
    return Contribution({name: tensors[name] for name in order if name in tensors}, metrics, weight)


@pytest.mark.parametrize("name", BUILT_IN)
@given(misfits())
def test_a_refused_contribution_changes_nothing(name: str, misfit: Contribution) -> None:
    first = contribution(
        1e308, {"loss": 0.5, "hits": 1}, x=np.ones((2, 2), np.float32), y=np.ones(20_000), n=[1, 2]
    )
    reducer, untouched = new(name), new(name)
    reducer.fold(first)
    untouched.fold(first)
    with pytest.raises(RefusedError):
        reducer.fold(misfit)
    assert same(reducer.state(), untouched.state())
    assert same(reducer.finish(), untouched.finish())


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_refused_first_contribution_decides_nothing(name: str) -> None:
    reducer = new(name)
    with pytest.raises(RefusedError, match="tensor 'x' holds NaN or infinity"):
        reducer.fold(contribution(x=[1.0, math.nan]))
    with pytest.raises(RefusedError, match="metric 'a' is nan, not a finite number"):
        reducer.fold(contribution(metrics={"a": math.nan}, z=[1]))
    reducer.fold(contribution(metrics={"b": 2.0}, y=[3]))
    answer = reducer.finish()
    assert (list(answer.tensors), answer.metrics, answer.weight) == (["y"], {"b": 2.0}, 1)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [1, 3, 8192, 8193, 70_000])
@pytest.mark.parametrize("name", ["weighted_mean", "max"])
def test_nan_and_infinity_are_found_anywhere(name: str, size: int, bad: float, dtype: str) -> None:
    for position in {0, size // 2, size - 1}:
        array = np.ones(size, dtype)
        array[position] = bad
        for there in (array, unaligned(array)):
            with pytest.raises(RefusedError, match=r"^tensor 'x' holds NaN or infinity$"):
                new(name).fold(contribution(x=there))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [5, 70_000])
def test_the_largest_floats_are_no_infinity(size: int, dtype: str) -> None:
    largest = np.full(size, np.finfo(dtype).max, dtype)
    assert np.isfinite(reduced("mean", [[contribution(x=largest)]]).tensors["x"]).all()


@pytest.mark.parametrize("dtype", [*FLOATS, "i4", "i8"])
@pytest.mark.parametrize("size", [0, 3, 70_000, 2_500_000])
@pytest.mark.parametrize("name", BUILT_IN)
def test_arrays_may_begin_at_any_byte(name: str, size: int, dtype: str) -> None:
    array = (np.arange(size) % 1000).astype(dtype)
    there = unaligned(array)
    expected = reduced(name, [[contribution(2.0, x=array), contribution(3.0, x=array)]])
    found = reduced(name, [[contribution(2.0, x=there), contribution(3.0, x=there)]])
    np.testing.assert_array_equal(found.tensors["x"], expected.tensors["x"])


def unaligned(array: Array) -> Array:
    """The same numbers, from a byte on where NumPy wouldn't put them."""
    there = np.frombuffer(bytearray(1 + array.nbytes), array.dtype, offset=1)
    np.copyto(there, array)
    return there


@pytest.mark.parametrize("name", BUILT_IN)
def test_nan_can_be_allowed(name: str) -> None:
    values = [contribution(metrics={"a": 1.0}, x=[1.0, 1.0])]
    values.append(contribution(metrics={"a": math.nan}, x=[math.nan, 2.0]))
    for groups in ([values], [values[::-1]], [[value] for value in values]):
        answer = reduced(name, groups, allow_nan=True)
        assert np.isnan(answer.tensors["x"]).tolist() == [True, False]
        assert math.isnan(float(answer.metrics["a"]))


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, -1.0])
def test_a_weight_that_is_none_is_refused(name: str, weight: float) -> None:
    with pytest.raises(RefusedError, match="a weight must be finite and not negative"):
        new(name).fold(contribution(weight, x=[1.0]))


def test_a_weighted_mean_needs_a_positive_weight() -> None:
    with pytest.raises(RefusedError) as caught:
        new("weighted_mean").fold(contribution(0.0, x=[1.0]))
    assert str(caught.value) == (
        "its weight is 0; weighted_mean needs a positive one: set Result.weight, most often the number of "
        "examples"
    )
    assert reduced("mean", [[contribution(0.0, x=[1.0])]]).tensors["x"] == [1]


@pytest.mark.parametrize("weight", [1e39, 1e-39])
def test_a_weight_that_float32_does_not_hold_is_refused_there(weight: float) -> None:
    new("weighted_mean").fold(contribution(weight, x=[1.0]))
    with pytest.raises(RefusedError, match="which float32 doesn't hold"):
        new("weighted_mean", dtype="float32").fold(contribution(weight, x=[1.0]))


@given(
    st.sampled_from([np.int64, np.uint64]),
    st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2), max_size=8),
    st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_integers_are_refused_exactly_when_a_sum_leaves_64_bits(
    dtype: type[np.int64] | type[np.uint64], rows: list[list[int]], merged: list[bool]
) -> None:
    reducer = new("sum")
    total = [0, 0]
    limits = np.iinfo(dtype)
    for row, merge in zip(rows, merged, strict=False):
        values = row if dtype is np.int64 else [value + 2**63 for value in row]
        sums = [left + right for left, right in zip(total, values, strict=True)]
        given = contribution(x=np.array(values, dtype))
        if merge:
            part = new("sum")
            part.fold(given)
            given = part.state()
        take = reducer.merge if merge else reducer.fold
        if all(limits.min <= value <= limits.max for value in sums):
            take(given)
            total = sums
        else:
            with pytest.raises(RefusedError, match="tensor 'x' has values that don't fit a 64-bit sum"):
                take(given)
        if reducer.finish().tensors:
            assert reducer.finish().tensors["x"].tolist() == total


@pytest.mark.parametrize("dtype", ["c8", "O", "M8[s]", "g"])
def test_what_is_no_number_of_64_bits_is_refused(dtype: str) -> None:
    with pytest.raises(RefusedError, match=r"tensor 'x' is .*, of which there is no mean"):
        new("mean").fold(contribution(x=np.zeros(1, dtype)))


def test_other_tensors_are_refused_in_words() -> None:
    reducer = new("mean")
    reducer.fold(contribution(w=np.zeros(4)))
    with pytest.raises(RefusedError, match=r"^tensor 'w' has shape \(3,\) where most have \(4,\)$"):
        reducer.fold(contribution(w=np.zeros(3)))


def test_states_of_other_tensors_are_refused() -> None:
    reducer, other = new("mean"), new("mean")
    reducer.fold(contribution(w=np.zeros(4, np.float32)))
    other.fold(contribution(w=np.zeros(4)))
    with pytest.raises(RefusedError, match="tensor 'w' is float64 where most have float32"):
        reducer.merge(other.state())


@pytest.mark.parametrize("name", ["mean", "sum", "max"])
def test_what_is_no_state_is_refused(name: str) -> None:
    reducer, other = new(name), new("min" if name != "min" else "max", allow_nan=True)
    other.fold(contribution(x=[1], metrics={"a": 1}))
    for state in (contribution(x=[1.0]), contribution(x=[1.0], metrics={"count": 1}), other.state()):
        if name == "max" and state.metrics.get("value:a"):
            continue  # min and max have the same states
        with pytest.raises(RefusedError, match=f"it is no state of a {name} with these options"):
            reducer.merge(state)
        assert not reducer.finish().tensors


# Metrics


@given(
    st.lists(
        st.tuples(
            st.dictionaries(
                st.sampled_from("abc"),
                st.booleans() | st.integers(-(2**60), 2**60) | st.floats(-1e50, 1e50) | st.text(max_size=2),
            ),
            st.floats(0.125, 100),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=7,
    )
)
def test_metrics_become_one_value_over_those_who_report_them(
    rows: list[tuple[dict[str, Plain], float, int]],
) -> None:
    groups: list[list[Contribution]] = [[], [], []]
    for metrics, weight, group in rows:
        groups[group].append(contribution(weight, metrics))
    answers = {name: reduced(name, groups).metrics for name in BUILT_IN}
    for key in "abc":
        reported = [
            (value, Fraction(weight))
            for metrics, weight, _ in rows
            if isinstance(value := metrics.get(key), int | float)
        ]
        if not reported:
            assert not any(key in answer for answer in answers.values())
            continue
        values = [Fraction(value) for value, _ in reported]
        weights = [weight for _, weight in reported]
        products = list(map(operator.mul, values, weights))
        exact = {
            "sum": sum(values),
            "mean": sum(values) / len(values),
            "weighted_mean": sum(products) / sum(weights),
            "min": min(values),
            "max": max(values),
        }
        slack = gamma(2 * len(values) + 2, UNIT["float64"])
        bounds = {
            "sum": slack * sum(map(abs, values)),
            "mean": slack * sum(map(abs, values)) / len(values),
            "weighted_mean": slack * sum(map(abs, products)) / sum(weights),
        }
        all_ints = all(isinstance(value, int) for value, _ in reported)
        for name, answer in answers.items():
            computed = answer[key]
            assert isinstance(computed, int | float)
            assert abs(Fraction(computed) - exact[name]) <= bounds.get(name, 0) + 99 * TINY["float64"]
            if all_ints and name in {"sum", "min", "max"}:
                assert (type(computed), computed) == (int, exact[name])


def test_an_integer_metric_that_leaves_64_bits_is_refused() -> None:
    reducer = new("sum")
    reducer.fold(contribution(metrics={"n": 2**63 - 2}, x=[1]))
    reducer.fold(contribution(metrics={"n": True}, x=[1]))
    with pytest.raises(RefusedError, match="metric 'n' has a value that doesn't fit a 64-bit sum"):
        reducer.fold(contribution(metrics={"n": 1}, x=[1]))
    assert reducer.finish().metrics == {"n": 2**63 - 1}
    assert reducer.finish().tensors["x"] == [2]


def test_metrics_and_tensors_may_have_any_name() -> None:
    names = ["count", "dtype:x", "sum:count", "", ":", "ä"]
    for name in BUILT_IN:
        given = Contribution({key: np.ones(1) for key in names}, dict.fromkeys(names, 1.0), 1.0)
        answer = reduced(name, [[given], [given]])
        value = 2 if name == "sum" else 1
        assert answer.metrics == dict.fromkeys(names, value)
        assert {key: array.tolist() for key, array in answer.tensors.items()} == {
            key: [value] for key in names
        }


# States


@pytest.mark.parametrize("name", BUILT_IN)
@given(
    cases(["f4", "f8", "i4", "u8", "?"], lambda dtype: floats(dtype) if dtype[0] == "f" else few_bits(dtype))
)
def test_a_state_survives_its_journey_unchanged(name: str, case: Case) -> None:
    reducer, copy = new(name), new(name)
    for each in case.contributions:
        reducer.fold(each)
    assert same(frozen(reducer.state()), reducer.state())
    copy.merge(frozen(reducer.state()))
    assert same(copy.finish(), reducer.finish())


@pytest.mark.parametrize("name", BUILT_IN)
def test_nothing_folded_is_an_empty_answer(name: str) -> None:
    answer = reduced(name, [[], []])
    assert (answer.tensors, answer.metrics, answer.weight) == ({}, {}, 0)


def test_a_reducer_can_go_on_after_its_answer() -> None:
    reducer = new("mean")
    for value, mean in ((1.0, 1.0), (3.0, 2.0)):
        reducer.fold(contribution(x=[value]))
        assert reducer.finish().tensors["x"] == [mean]


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_a_reducer_gives_out_cannot_be_written_to(name: str) -> None:
    reducer = new(name)
    reducer.fold(contribution(x=[1]))
    assert not reducer.state().tensors["x"].flags.writeable


# Contributions


@given(
    st.dictionaries(
        st.text(max_size=3),
        hnp.arrays(st.sampled_from([*FLOATS, *INTS]), hnp.array_shapes(min_dims=0, min_side=0, max_side=4)),
        max_size=3,
    ),
    st.dictionaries(
        st.text(max_size=3), st.booleans() | st.integers(0, 9) | st.text() | st.binary(), max_size=3
    ),
    st.floats(allow_nan=False),
)
def test_a_contribution_survives_the_wire(
    tensors: dict[str, Array], metrics: dict[str, Plain], weight: float
) -> None:
    given = Contribution(tensors, metrics, weight)
    read = decode(memoryview(encode(given)))
    assert same(Contribution(read.tensors, {key: read.metrics[key] for key in metrics}, read.weight), given)


@pytest.mark.parametrize("array", [np.ones((300, 200)).T, np.ones(40_000)[::2], np.ones(40_000, ">f8")])
def test_a_large_contribution_survives_whatever_its_layout(array: Array) -> None:
    read = decode(encode(contribution(x=array, y=array)))
    np.testing.assert_array_equal(read.tensors["x"], array)
    np.testing.assert_array_equal(read.tensors["y"], array)


def test_an_empty_message_is_an_empty_contribution() -> None:
    read = decode(b"")
    assert (read.tensors, read.metrics, read.weight) == ({}, {}, 0)


schemas = st.dictionaries(
    st.sampled_from("abc"),
    st.builds(
        lambda shape, dtype: np.zeros(shape, dtype),
        st.lists(st.integers(0, 3), max_size=2),
        st.sampled_from(["f4", "f8", "i8"]),
    ),
).map(schema_of)


@given(schemas, schemas)
def test_schemas_that_differ_are_told_apart(left: Any, right: Any) -> None:
    assert (describe_mismatch(left, right) == "") == (left == right) == (hash(left) == hash(right))
    assert (encode_schema(left) == encode_schema(right)) == (left == right)
    assert decode_schema(encode_schema(left)) == left


@pytest.mark.parametrize("text", ["", "3", "[3]", "[[1,2]]", "null", '[["a", ["x"], "f"]]'])
def test_what_is_no_schema_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="no schema"):
        decode_schema(text)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"w": np.zeros(3), "x": np.zeros(2)}, "tensor 'w' has shape (3,) where most have (4,)"),
        ({"w": np.zeros(4), "x": np.zeros(2, "f4")}, "tensor 'x' is float32 where most have float64"),
        ({"x": np.zeros(2)}, "tensor 'w' is missing"),
        ({"w": np.zeros(4), "x": np.zeros(2), "y": np.zeros(2)}, "tensor 'y' is one that most don't have"),
        ({}, "tensor 'w' is missing (and 1 more tensors differ)"),
    ],
)
def test_a_mismatch_is_described_in_words(given: dict[str, Array], text: str) -> None:
    assert describe_mismatch(schema_of(given), schema_of({"x": np.zeros(2), "w": np.zeros(4)})) == text


# Which reducer a name stands for


class Count(Reducer):
    """One of a user's own: how many contributions there are."""

    uniform = False

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.count = start

    def fold(self, contribution: Contribution) -> None:
        self.count += 1

    def state(self) -> Contribution:
        return Contribution({}, {"count": self.count}, 0.0)

    def merge(self, state: Contribution) -> None:
        self.count += int(state.metrics["count"])

    def finish(self) -> Contribution:
        return self.state()


class Unfinished(Reducer):
    """Lacks most of it."""

    def fold(self, contribution: Contribution) -> None: ...


class Unwilling(Count):
    """Can't be made where there is no GPU."""

    def __init__(self) -> None:
        raise RuntimeError("no GPU here")


MINE = f"{__name__}:Count"
UNWILLING = f"{__name__}:Unwilling"


def test_a_reducer_of_ones_own_is_found_by_its_import_path() -> None:
    reducer = make_reducer(MINE, {"start": 3}, [MINE])
    reducer.fold(contribution())
    assert reducer.finish().metrics == {"count": 4}


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("median", {}, "there is no reducer 'median': use sum, mean, weighted_mean, min, max, or the import"),
        ("os:system", {}, "allow it with coordinator start --reducer os:system"),
        ("mean", {"dtype": "float16"}, 'dtype must be "float64" or "float32"'),
        ("mean", {"allow_nan": 1}, "allow_nan must be true or false, not 1"),
        ("weighted_mean", {"sort": 1}, "there is no option 'sort'"),
        (MINE, {"stop": 3}, "can't be made with these options"),
        (UNWILLING, {}, "no GPU here"),
    ],
)
def test_what_cannot_be_made_says_why(name: str, options: dict[str, Plain], text: str) -> None:
    with pytest.raises(ValueError, match="reducer") as caught:
        make_reducer(name, options, [MINE, UNWILLING])
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("mean", "is no import path"),
        ("a b:C", "is no import path"),
        (".x:C", "is no import path"),
        ("no.such.module:C", "can't be imported: ModuleNotFoundError"),
        (f"{__name__}:Missing", "has no Missing"),
        (f"{__name__}:same", "is no subclass of manager.Reducer"),
        ("builtins:dict", "is no subclass"),
        (f"{__name__}:Unfinished", "lacks finish, merge, state"),
    ],
)
def test_a_path_that_leads_to_no_reducer_is_refused_at_the_start(path: str, text: str) -> None:
    check_allowed([MINE])
    with pytest.raises(ValueError, match="reducer") as caught:
        check_allowed([MINE, path])
    assert text in str(caught.value)
    assert path in str(caught.value)
    assert "<frozen" not in str(caught.value)


def test_built_in_reducers_need_no_allowance_and_may_be_named_by_path() -> None:
    check_allowed(BUILT_IN.values())
    assert {make_reducer(name, {}, []).uniform for name in BUILT_IN} == {True}
