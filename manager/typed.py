"""Settings that people write, checked against the types that their class gives its fields.

Whether a value of the right type makes sense is for each class to say.
"""

from __future__ import annotations

from dataclasses import fields
from numbers import Integral, Real
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


def check_types(settings: Any) -> None:
    """Raises TypeError, with a sentence, if a field of a dataclass holds what isn't of its type.

    NumPy's numbers are numbers; True and False are none.
    """
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        if not _fits(value, hint):
            raise TypeError(f"{field.name} must be {_words(hint)}, not {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if origin is tuple:
        parts = get_args(hint)
        if not isinstance(value, tuple):
            return False
        if parts[-1] is Ellipsis:
            return all(_fits(each, parts[0]) for each in value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if isinstance(value, bool):
        return hint is bool
    if hint is int or hint is float:
        return isinstance(value, Integral if hint is int else Real)
    return isinstance(value, origin or hint)


_NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}


def _words(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_words, get_args(hint)))
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        count = "a tuple of " if parts[-1] is Ellipsis else f"a tuple of {len(parts)}: "
        return count + _words(parts[0])
    return _NAMES.get(hint) or f"a {getattr(hint, '__name__', hint)}"
