"""The built-in reducers: sum, mean, weighted_mean, min and max, of each element and each metric by itself.

Decides which contributions are refused, what a partial state consists of, and in which dtype the answer is.
How numbers are added up is accumulators.py's and measures.py's business.

What all of them have in common:

- Contributions must have the same tensors (``uniform``), of numbers or bools.
- NaN and infinities are refused, in tensors and metrics, unless ``allow_nan`` is set.
- A weight must be finite and not negative. The answer's weight is the sum of all weights.
- Metrics become one value as the tensors do, over those who report them. Bools count as 0 and 1; text and
  bytes are left out.
- Floats are added up in ``dtype``, "float64" (the default) or "float32"; float64 tensors always in float64.
- A float sum that leaves the range of its dtype becomes infinite, as is usual, and no error.

**How exact float sums are.** Whatever the order, and however n contributions are split over reducers that are
merged afterwards, n − 1 additions can round (adding to zero is exact), and no term goes through more of them.
With u the unit roundoff of ``dtype`` (2⁻⁵³, or 2⁻²⁴ for float32) and γₖ = ku / (1 − ku), the error of Σxᵢ is
therefore γₙ₋₁ Σ|xᵢ| at most, the bound that holds for all orders of summation (Higham, "Accuracy and
Stability of Numerical Algorithms", 2nd ed., §4.2 with Lemma 3.1). In a weighted sum each product rounds, too,
and before it the weight (to float32) or the element (an integer beyond 2⁵³): γₙ₊₁ Σ wᵢ|xᵢ|. As weights aren't
negative, the relative error of Σwᵢ is γₙ₋₁ at most. Together with the division, by Lemma 3.1 again,

    |computed mean − mean| ≤ γ₂ₙ₊₁ · Σ wᵢ|xᵢ| / Σ wᵢ,

apart from underflow, and from the rounding of the answer to float32 where that is its dtype. So the answers
of two orders or splits differ by twice this at most.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Final, NoReturn

import numpy as np

from manager.reducing.accumulators import (
    Accumulator,
    Array,
    DType,
    Extreme,
    FloatSum,
    IntSum,
    Scratch,
    Shape,
    aligned,
)
from manager.reducing.contributions import Contribution, RefusedError
from manager.reducing.measures import INT64, ExtremeMeasure, MeanMeasure, Measure, State, SumMeasure
from manager.reducing.reducers import Reducer
from manager.reducing.schema import Schema, describe_mismatch, dtype_name, schema_of
from protos.messages import Plain

__all__ = ["Max", "Mean", "Min", "Sum", "WeightedMean"]

_LIMITS: Final = {name: np.finfo(name) for name in ("float64", "float32")}
_LARGEST: Final = float(_LIMITS["float64"].max)
_COUNT: Final = "count"
_DTYPE: Final = "dtype"
"""A state's metrics: ``count``, ``dtype:name`` for each tensor, ``part:name`` for each part of a metric."""


class _Elementwise(Reducer):
    """What the built-in reducers have in common: all but what is done with a tensor or a metric."""

    name: ClassVar[str]
    measure: ClassVar[Measure]

    weighted: ClassVar[bool] = False
    """Whether a contribution's tensors and metrics count by its weight."""

    def __init__(self, *, dtype: Plain = "float64", allow_nan: Plain = False, **unknown: Plain) -> None:
        if unknown:
            super().__init__(**unknown)
        if dtype not in ("float64", "float32"):
            raise ValueError(f'dtype must be "float64" or "float32", not {dtype!r}')
        if not isinstance(allow_nan, bool):
            raise ValueError(f"allow_nan must be true or false, not {allow_nan!r}")
        self._dtype = np.dtype(dtype)
        self._allow_nan = allow_nan
        self._scratch = Scratch()
        self._count = 0
        self._weight = 0.0
        self._tensors: dict[str, Accumulator] = {}  # all of them from the first contribution on
        self._metrics: dict[str, State] = {}
        self._lightest, self._heaviest = 0.0, _LARGEST

    def fold(self, contribution: Contribution) -> None:
        weight = contribution.weight
        total_weight = self._weight + weight
        if not (self._lightest <= weight <= self._heaviest and total_weight <= _LARGEST):
            raise RefusedError(self._weight_refusal(weight))
        arrays = {name: aligned(array) for name, array in contribution.tensors.items()}
        if self._count:
            tensors = self._tensors
            if len(tensors) != len(arrays):
                self._refuse_tensors(schema_of(arrays))
        else:
            tensors = {
                name: self._new_accumulator(name, array.dtype, array.shape) for name, array in arrays.items()
            }
        factor = weight if self.weighted else None
        with np.errstate(all="ignore"):
            for name, array in arrays.items():
                tensor = tensors.get(name)
                if tensor is None or array.dtype != tensor.dtype or array.shape != tensor.shape:
                    self._refuse_tensors(schema_of(arrays))
                problem = tensor.refusal(array)
                if problem is not None:
                    raise RefusedError(f"tensor {name!r} {problem}")
            if contribution.metrics:
                metrics = self._fold_metrics(contribution.metrics, weight)
                self._metrics.update(metrics)
            # Nothing is refused from here on.
            for name, array in arrays.items():
                tensors[name].add(array, factor)
        self._tensors = tensors
        self._weight = total_weight
        self._count += 1

    def state(self) -> Contribution:
        metrics: dict[str, Plain] = {_COUNT: self._count}
        for name, tensor in self._tensors.items():
            metrics[f"{_DTYPE}:{name}"] = dtype_name(tensor.dtype)
        for name, state in self._metrics.items():
            for part, number in zip(self.measure.parts, state, strict=True):
                metrics[f"{part}:{name}"] = number
        totals = {name: _read_only(tensor.total) for name, tensor in self._tensors.items()}
        return Contribution(totals, metrics, self._weight)

    def merge(self, state: Contribution) -> None:
        count, dtypes, metrics = self._read_state(state)
        if not count:
            return
        if self._weight + state.weight > _LARGEST:
            raise RefusedError("the weights add up to more than a float holds")
        tensors = self._tensors
        if not self._count:
            tensors = {
                name: self._new_accumulator(name, dtypes[name], total.shape)
                for name, total in state.tensors.items()
            }
        schema = tuple(
            sorted((name, total.shape, dtype_name(dtypes[name])) for name, total in state.tensors.items())
        )
        if self._count and schema != self._schema():
            self._refuse_tensors(schema)
        with np.errstate(all="ignore"):
            for name, total in state.tensors.items():
                if total.dtype != tensors[name].total.dtype:
                    raise RefusedError(self._foreign())
                problem = tensors[name].merge_refusal(total)
                if problem is not None:
                    raise RefusedError(f"tensor {name!r} {problem}")
            self._metrics.update({name: self._join(name, metric) for name, metric in metrics.items()})
            for name, total in state.tensors.items():
                tensors[name].merge(total)
        self._tensors = tensors
        self._weight += state.weight
        self._count += count

    def finish(self) -> Contribution:
        with np.errstate(all="ignore"):
            tensors = {name: self._answer(tensor) for name, tensor in self._tensors.items()}
        metrics: dict[str, Plain] = {
            name: self.measure.answer(state) for name, state in self._metrics.items()
        }
        return Contribution(tensors, metrics, self._weight)

    @abstractmethod
    def _accumulator(self, dtype: DType, shape: Shape) -> Accumulator:
        """What builds up the answer for a tensor."""

    def _answer(self, tensor: Accumulator) -> Array:
        return _read_only(tensor.total)

    def _float_sum(self, dtype: DType, shape: Shape) -> Accumulator:
        total = np.promote_types(dtype, self._dtype) if dtype.kind == "f" else np.dtype(np.float64)
        return FloatSum(dtype, shape, total, self._scratch, allow_nan=self._allow_nan)

    def _new_accumulator(self, name: str, dtype: DType, shape: Shape) -> Accumulator:
        if dtype.kind not in "fiub" or dtype.itemsize > 8:
            raise RefusedError(f"tensor {name!r} is {dtype}, of which there is no {self.name}")
        return self._accumulator(dtype, shape)

    def _fold_metrics(self, metrics: Mapping[str, Plain], weight: float) -> dict[str, State]:
        """The new states of the metrics of a contribution."""
        states: dict[str, State] = {}
        factor = weight if self.weighted else 1.0
        for name, value in metrics.items():
            if isinstance(value, float):
                if not (self._allow_nan or math.isfinite(value)):
                    raise RefusedError(f"metric {name!r} is {value}, not a finite number")
                number: int | float = value
            elif isinstance(value, int):
                if value not in INT64:
                    raise RefusedError(f"metric {name!r} doesn't fit 64 bits")
                number = int(value)
            else:
                continue
            states[name] = self._join(name, self.measure.of(number, factor))
        return states

    def _join(self, name: str, state: State) -> State:
        before = self._metrics.get(name)
        if before is None:
            return state
        try:
            return self.measure.join(before, state)
        except OverflowError:
            raise RefusedError(f"metric {name!r} has a value that doesn't fit a 64-bit sum") from None

    def _read_state(self, state: Contribution) -> tuple[int, dict[str, DType], dict[str, State]]:
        """How many contributions a state is of, the tensors' dtypes by name, and the metrics' states."""
        values: dict[str, dict[str, Any]] = {part: {} for part in (_DTYPE, *self.measure.parts)}
        try:
            for key, value in state.metrics.items():
                part, _, name = key.partition(":")
                if key != _COUNT:
                    values[part][name] = value
            dtypes = {name: np.dtype(dtype) for name, dtype in values[_DTYPE].items()}
            metrics = {
                name: tuple(values[part][name] for part in self.measure.parts)
                for name in values[self.measure.parts[0]]
            }
            count = state.metrics[_COUNT]
        except (KeyError, TypeError):
            raise RefusedError(self._foreign()) from None
        if not isinstance(count, int) or dtypes.keys() != state.tensors.keys():
            raise RefusedError(self._foreign())
        return count, dtypes, metrics

    def _foreign(self) -> str:
        return f"it is no state of a {self.name} with these options"

    def _schema(self) -> Schema:
        return tuple(
            sorted((name, tensor.shape, dtype_name(tensor.dtype)) for name, tensor in self._tensors.items())
        )

    def _refuse_tensors(self, schema: Schema) -> NoReturn:
        raise RefusedError(describe_mismatch(schema, self._schema()))

    def _weight_refusal(self, weight: float) -> str:
        if not 0 <= weight <= _LARGEST:
            return f"its weight is {weight:g}; a weight must be finite and not negative"
        return f"its weight is {weight:g}, and with it the weights add up to more than a float holds"


class Sum(_Elementwise):
    """The sum of each element: of floats in ``dtype``, of integers and bools exactly.

    Integers and bools are summed in int64, uint64 in uint64; a contribution with which a sum would leave 64
    bits is refused. The answer has the dtype of the sum. Metrics that are all integers have an integer sum.
    """

    name = "sum"
    measure = SumMeasure()

    def _accumulator(self, dtype: DType, shape: Shape) -> Accumulator:
        return self._float_sum(dtype, shape) if dtype.kind == "f" else IntSum(dtype, shape)


class Mean(_Elementwise):
    """The mean of each element, every contribution counting the same.

    The answer's dtype is the one that was sent for float64 and float32, float32 for float16, and float64 for
    integers and bools. Integers are added up in float64: exactly as long as no sum goes beyond 2⁵³.
    """

    name = "mean"
    measure = MeanMeasure()

    def _accumulator(self, dtype: DType, shape: Shape) -> Accumulator:
        return self._float_sum(dtype, shape)

    def _divisor(self) -> float:
        return self._count

    def _answer(self, tensor: Accumulator) -> Array:
        kind = tensor.dtype.kind
        dtype = np.promote_types(tensor.dtype, np.float32) if kind == "f" else np.dtype(np.float64)
        answer = np.empty(tensor.shape, dtype)
        np.divide(tensor.total, self._divisor(), out=answer, dtype=np.float64, casting="same_kind")
        return answer


class WeightedMean(Mean):
    """Σ weight·x / Σ weight of each element. A weight must be positive.

    The answer's dtypes are those of Mean. Integers are converted to float64 (exactly up to 2⁵³), multiplied
    and added up in it: exactly as long as the weights are integers and no sum goes beyond 2⁵³.
    """

    name = "weighted_mean"
    weighted = True

    def __init__(self, **options: Plain) -> None:
        super().__init__(**options)
        # The products are in dtype: a weight that isn't must not become 0 or infinite there.
        limits = _LIMITS[dtype_name(self._dtype)]
        self._lightest, self._heaviest = float(limits.smallest_normal), float(limits.max)

    def _divisor(self) -> float:
        return self._weight

    def _weight_refusal(self, weight: float) -> str:
        if weight == 0:
            return (
                f"its weight is 0; {self.name} needs a positive one: set Result.weight, most often the "
                f"number of examples"
            )
        if 0 < weight < self._lightest or self._heaviest < weight <= _LARGEST:
            return f"its weight is {weight:g}, which {self._dtype.name} doesn't hold"
        return super()._weight_refusal(weight)


class Min(_Elementwise):
    """The smallest of each element, in the dtype that was sent; False before True."""

    name = "min"
    measure = ExtremeMeasure(min)

    def _accumulator(self, dtype: DType, shape: Shape) -> Accumulator:
        return Extreme(dtype, shape, np.minimum, allow_nan=self._allow_nan)


class Max(_Elementwise):
    """The largest of each element, in the dtype that was sent; True before False."""

    name = "max"
    measure = ExtremeMeasure(max)

    def _accumulator(self, dtype: DType, shape: Shape) -> Accumulator:
        return Extreme(dtype, shape, np.maximum, allow_nan=self._allow_nan)


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view
