"""One tensor's share of a reduction: its sum or its extremes, built up array by array.

Decides how numbers are added up (in which dtype, how exactly, how fast) and what can't be taken in. Which
tensors there are, and what is made of the sums, is elementwise.py's business; metrics are measures.py's.

Nothing is known of a refusal after it: whoever folds asks ``refusal`` for all tensors first, and only then
lets any of them ``add``. Floating-point warnings are switched off by the caller, once for all of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
DType: TypeAlias = np.dtype[Any]
Shape: TypeAlias = tuple[int, ...]

BLOCK: Final = 16 * 1024
"""Elements that are worked on at once: a block, its product and its sum (320 KiB for float32 into float64)
stay in a core's L2 cache from one step to the next, and the calls cost little in comparison."""

_LOOK: Final = 64 * 1024
"""Elements whose finiteness is looked at at once, where that is all that is done with them."""

_DOT: Final = 8 * 1024
"""Up to this many elements finiteness is seen from a dot product: OpenBLAS starts no threads for so few."""

_COPIED: Final = 8 * 1024 * 1024
"""Bytes of an array up to which a copy is no matter."""

NOT_FINITE: Final = "holds NaN or infinity"


class Accumulator(ABC):
    """What has become of one tensor: ``total``, of the shape that it was sent in."""

    __slots__ = ("dtype", "shape", "total")

    def __init__(self, dtype: DType, shape: Shape, total: Array) -> None:
        self.dtype = dtype
        self.shape = shape
        self.total = total

    @abstractmethod
    def refusal(self, array: Array) -> str | None:
        """Why an array of ``dtype`` and ``shape`` can't be taken in, if it can't."""

    @abstractmethod
    def add(self, array: Array, weight: float | None) -> None:
        """Takes in an array that isn't refused; without a weight it counts once."""

    def merge_refusal(self, total: Array) -> str | None:
        """Why another accumulator's total can't be taken in, if it can't."""
        return None

    @abstractmethod
    def merge(self, total: Array) -> None:
        """Takes in the total of another accumulator of the same kind."""


class Scratch:
    """Memory for intermediate results, shared by the accumulators of one reducer."""

    def __init__(self) -> None:
        self._arrays: dict[DType, Array] = {}

    def of(self, dtype: DType, size: int) -> Array:
        """``size`` elements, but a block at most."""
        size = min(size, BLOCK)
        array = self._arrays.get(dtype)
        if array is None or array.size < size:
            array = self._arrays[dtype] = np.empty(size, dtype)
        return array[:size]


class FloatSum(Accumulator):
    """A sum in floats of ``total_dtype``, of tensors of any dtype."""

    __slots__ = ("_blocks", "_checked", "_converted", "_flat", "_scratch")

    def __init__(
        self, dtype: DType, shape: Shape, total_dtype: DType, scratch: Scratch, *, allow_nan: bool
    ) -> None:
        super().__init__(dtype, shape, np.zeros(shape, total_dtype))
        self._checked = dtype.kind == "f" and not allow_nan
        self._converted = dtype != total_dtype
        self._flat = self.total.reshape(-1)
        self._scratch = scratch.of(total_dtype, self._flat.size)
        self._blocks: list[tuple[slice, Array]] | None = None
        if self._flat.size > BLOCK:
            blocks = [slice(start, start + BLOCK) for start in range(0, self._flat.size, BLOCK)]
            self._blocks = [(block, self._flat[block]) for block in blocks]

    def refusal(self, array: Array) -> str | None:
        return NOT_FINITE if self._checked and not is_finite(array) else None

    def add(self, array: Array, weight: float | None) -> None:
        flat = array.reshape(-1)
        if self._blocks is None:
            self._add_block(flat, weight, self._flat, self._scratch)
            return
        for block, total in self._blocks:
            self._add_block(flat[block], weight, total, self._scratch[: total.size])

    def _add_block(self, block: Array, weight: float | None, total: Array, scratch: Array) -> None:
        if self._converted:  # apart from the arithmetic: NumPy's ufuncs convert in small pieces
            np.copyto(scratch, block)
            if weight is not None:
                np.multiply(scratch, weight, out=scratch)
            block = scratch
        elif weight is not None:
            block = np.multiply(block, weight, out=scratch)
        np.add(total, block, out=total)

    def merge(self, total: Array) -> None:
        np.add(self.total, total, out=self.total)


class IntSum(Accumulator):
    """An exact sum of integers or bools: uint64 of uint64, int64 of all others.

    Overflow is found without a look at each sum. ``_low`` and ``_high`` bound all elements of the total: an
    array of 32 bits or less can move them by no more than its dtype's limits, one of 64 bits by its smallest
    and its largest element. Only when the bounds leave 64 bits, the total's own extremes take their place,
    and only when these don't help either, each sum is looked at.
    """

    __slots__ = ("_high", "_limits", "_low", "_next", "_range")

    def __init__(self, dtype: DType, shape: Shape) -> None:
        total_dtype = np.dtype(np.uint64 if dtype == np.uint64 else np.int64)
        super().__init__(dtype, shape, np.zeros(shape, total_dtype))
        limits = np.iinfo(total_dtype)
        self._limits = int(limits.min), int(limits.max)
        self._range: tuple[int, int] | None = None
        if dtype.kind == "b":
            self._range = 0, 1
        elif dtype.itemsize < 8:
            self._range = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        self._low = self._high = 0
        self._next = 0, 0

    def refusal(self, array: Array) -> str | None:
        return self._refusal(array, self._range or _extremes(array))

    def add(self, array: Array, weight: float | None) -> None:
        np.add(self.total, array, out=self.total)
        self._low, self._high = self._next

    def merge_refusal(self, total: Array) -> str | None:
        return self._refusal(total, _extremes(total))

    def merge(self, total: Array) -> None:
        self.add(total, None)

    def _refusal(self, array: Array, added: tuple[int, int]) -> str | None:
        """As refusal, and notes the bounds that are true once the array is added."""
        lowest, highest = self._limits
        self._next = self._low + added[0], self._high + added[1]
        if lowest <= self._next[0] and self._next[1] <= highest:
            return None
        self._low, self._high = _extremes(self.total)
        low, high = _extremes(array)
        self._next = self._low + low, self._high + high
        if lowest <= self._next[0] and self._next[1] <= highest:
            return None
        sums = np.add(self.total, array)  # wraps around where it overflows
        if self.total.dtype.kind == "u":
            overflows = sums < self.total
        else:  # the signs of both differ from that of the sum (Warren, "Hacker's Delight", 2nd ed., §2-13)
            overflows = ((self.total ^ sums) & (array ^ sums)) < 0
        self._next = max(self._next[0], lowest), min(self._next[1], highest)
        return "has values that don't fit a 64-bit sum" if overflows.any() else None


class Extreme(Accumulator):
    """The smallest or largest of each element, in the dtype that it was sent in. NaN, if allowed, wins."""

    __slots__ = ("_checked", "_empty", "_ufunc")

    def __init__(self, dtype: DType, shape: Shape, ufunc: np.ufunc, *, allow_nan: bool) -> None:
        super().__init__(dtype, shape, np.empty(shape, dtype))
        self._ufunc = ufunc
        self._checked = dtype.kind == "f" and not allow_nan
        self._empty = True

    def refusal(self, array: Array) -> str | None:
        return NOT_FINITE if self._checked and not is_finite(array) else None

    def add(self, array: Array, weight: float | None) -> None:
        if self._empty:
            np.copyto(self.total, array)
            self._empty = False
        else:
            self._ufunc(self.total, array, out=self.total)

    def merge(self, total: Array) -> None:
        self.add(total, None)


def is_finite(array: Array) -> bool:
    """Whether an array of floats is without NaN and infinity."""
    flat = array.reshape(-1)
    if flat.size <= _DOT and flat.dtype.itemsize >= 4:
        # A sum of squares is finite only if they all are. It may overflow without that: then look closer.
        if math.isfinite(flat.dot(flat)):
            return True
        return bool(np.isfinite(flat).all())
    summed = flat.dtype.itemsize >= 4  # likewise; of others the sum overflows nearly always
    for start in range(0, flat.size, _LOOK):
        block = flat[start : start + _LOOK]
        if not (summed and math.isfinite(np.add.reduce(block))) and not np.isfinite(block).all():
            return False
    return True


def aligned(array: Array) -> Array:
    """The array, or a copy: what comes out of a message may begin at any byte, and then each step takes NumPy
    twice as long."""
    return array if array.flags.aligned or array.nbytes > _COPIED else array.copy()


def _extremes(array: Array) -> tuple[int, int]:
    return (int(array.min()), int(array.max())) if array.size else (0, 0)
