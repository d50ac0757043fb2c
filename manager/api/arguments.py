"""What callers may pass: checked where they pass it, so that a slip is a sentence in their own code.

Numbers may be NumPy's. What doesn't fit raises TypeError or ValueError, with what was passed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import TypeVar

from protos import stream_pb2

P = TypeVar("P")

Message = stream_pb2.ServerMessage


def check_timeout(timeout: float | None) -> None:
    """Raises ValueError for a timeout that is no length of time, TypeError for one that is no number."""
    if timeout is None:
        return
    number: object = timeout
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"timeout must be None or seconds, not {timeout!r}")
    if not timeout >= 0:  # nor nan
        raise ValueError(f"timeout must be None or seconds of at least 0, not {timeout!r}")


def check_request(
    minimum: int, maximum: int | None, where: Mapping[str, str] | None, timeout: float | None
) -> tuple[int, int | None]:
    """How many participants somebody asks for, as plain integers."""
    if isinstance(minimum, Mapping) or isinstance(maximum, Mapping):
        raise TypeError("attributes go to where=, as in get_participants(5, where={'region': 'eu'})")
    minimum = _count("the number of participants", minimum)
    if maximum is not None:
        maximum = _count("max_num_participants", maximum, 1)
        if maximum < minimum:
            raise ValueError(
                f"max_num_participants must be at least min_num_participants: {maximum} < {minimum}"
            )
    check_timeout(timeout)
    if not isinstance(where, Mapping | None):
        raise TypeError(f"where must map names of attributes to values, not be {where!r}")
    for key, value in (where or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"where must map strings to strings; got {key!r}: {value!r}")
    return minimum, maximum


def check_quorum(quorum: int | None, asked: int) -> int | None:
    """How many results are enough, of so many that are asked for one; as a plain integer."""
    if quorum is None:
        return None
    count = _count("a quorum", quorum, 1)
    if count > asked:
        raise ValueError(f"a quorum of {count} can't be reached by {asked} participants")
    return count


def paired(
    instruction: Message | Mapping[P, Message] | Sequence[Message], proxies: Sequence[P]
) -> tuple[Sequence[P], Sequence[Message]]:
    """Who of the cohort is asked, and the messages: one for all, or one for each."""
    if isinstance(instruction, Message):
        return proxies, [instruction]
    if isinstance(instruction, Mapping):
        known = set(proxies)
        strangers = [proxy for proxy in instruction if proxy not in known]
        if strangers:
            hint = "; the keys are participants, not their ids" if isinstance(strangers[0], str) else ""
            raise ValueError(f"{strangers[0]!r} is not in this cohort{hint}")
        return list(instruction), _each(list(instruction.values()))
    each: object = instruction
    if isinstance(each, str | bytes) or not isinstance(each, Sequence):
        raise TypeError(
            f"run() sends a ServerMessage, such as instruction('train', ...), to all, or one to each in a "
            f"list or a mapping by participant; not {type(instruction).__name__}"
        )
    if len(instruction) != len(proxies):
        raise ValueError(f"{len(instruction)} instructions for {len(proxies)} participants")
    return proxies, _each(instruction)


def _each(messages: Sequence[Message]) -> Sequence[Message]:
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Message):
            raise TypeError(
                f"run() sends a ServerMessage to each, but number {number} of {len(messages)} is of type "
                f"{type(message).__name__}"
            )
    return messages


def check_progress(progress: Callable[..., object] | None) -> None:
    """Raises TypeError if it can't be called: once the call has ended its results would be lost."""
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be a function that takes a Progress, not {progress!r}")


def check_factory(factory: Callable[..., object] | None) -> None:
    """Raises TypeError for a participant_proxy_factory that makes nothing."""
    if factory is not None and not callable(factory):
        raise TypeError(
            f"participant_proxy_factory must be a subclass of ParticipantProxy, or a function that makes "
            f"one, not {factory!r}"
        )


def check_sample(k: int, size: int) -> int:
    """How many of so many participants are to be chosen, as a plain integer."""
    k = _count("a sample", k)
    if k > size:
        raise ValueError(f"can't sample {k} of {size} participants")
    return k


def _count(what: str, number: int, least: int = 0) -> int:
    try:
        value = -1 if isinstance(number, bool) else operator.index(number)
    except TypeError:
        value = -1
    if value < least:
        raise ValueError(f"{what} must be an integer of at least {least}, not {number!r}")
    return value
