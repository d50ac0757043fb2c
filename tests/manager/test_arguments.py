"""What callers may pass, and the sentence for what they may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from manager.api.arguments import check_quorum, check_request, check_timeout, paired
from protos.messages import instruction

ONE = instruction("train")


@pytest.mark.parametrize("timeout", [None, 0, 0.5, 3, np.float32(2), float("inf")])
def test_lengths_of_time_are_timeouts(timeout: Any) -> None:
    check_timeout(timeout)


@pytest.mark.parametrize(
    ("timeout", "error", "words"),
    [
        (-1, ValueError, "timeout must be None or seconds of at least 0, not -1"),
        (float("nan"), ValueError, "not nan"),
        ("10", TypeError, "timeout must be None or seconds, not '10'"),
        ([], TypeError, r"not \[\]"),
    ],
)
def test_what_is_no_length_of_time_is_none(timeout: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        check_timeout(timeout)


def test_numbers_may_be_numpys_and_come_back_as_plain_ones() -> None:
    minimum, maximum = check_request(np.int64(2), np.uint8(3), {"region": "eu"}, None)  # type: ignore[arg-type]
    assert (type(minimum), type(maximum)) == (int, int)
    assert type(check_quorum(np.int32(2), 3)) is int  # type: ignore[arg-type]
    assert check_quorum(None, 3) is None


@pytest.mark.parametrize("number", [-1, 2.0, "3", None, True, float("nan")])
def test_what_is_no_number_of_participants_is_refused(number: Any) -> None:
    with pytest.raises(ValueError, match=f"an integer of at least 0, not {number!r}"):
        check_request(number, None, None, None)


def test_at_most_fewer_than_at_least_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be at least min_num_participants: 2 < 3$"):
        check_request(3, 2, None, None)
    with pytest.raises(ValueError, match=r"^max_num_participants must be an integer of at least 1, not 0$"):
        check_request(0, 0, None, None)


@pytest.mark.parametrize(
    ("where", "words"),
    [("eu", "not be 'eu'"), (["eu"], "not be"), ({"region": 1}, "'region': 1"), ({1: "eu"}, "1: 'eu'")],
)
def test_where_maps_names_to_strings(where: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        check_request(1, None, where, None)


@pytest.mark.parametrize("quorum", [0, -1, 2.5, float("nan"), True, "x"])
def test_what_is_no_quorum_is_refused(quorum: Any) -> None:
    with pytest.raises(ValueError, match=f"a quorum must be an integer of at least 1, not {quorum!r}"):
        check_quorum(quorum, 5)


def test_a_quorum_counts_those_who_are_asked() -> None:
    assert check_quorum(5, 5) == 5
    with pytest.raises(ValueError, match="a quorum of 6 can't be reached by 5 participants"):
        check_quorum(6, 5)


def test_one_instruction_is_for_all_and_a_list_or_a_mapping_has_one_for_each() -> None:
    others = [instruction("train", config={"seed": seed}) for seed in range(2)]
    assert paired(ONE, "ab") == ("ab", [ONE])
    assert paired(others, "ab") == ("ab", others)
    assert paired({"b": ONE}, "ab") == (["b"], [ONE])
    nobody: Mapping[str, Any] = {}
    assert paired(nobody, "ab") == ([], [])


def test_instructions_that_go_to_nobody_or_lack_somebody_are_refused() -> None:
    with pytest.raises(ValueError, match="'c' is not in this cohort"):
        paired({"a": ONE, "c": ONE}, "ab")
    with pytest.raises(ValueError, match="3 instructions for 2 participants"):
        paired([ONE] * 3, "ab")


@pytest.mark.parametrize("wrong", [None, "train", b"train", 7, {ONE.WhichOneof("kind")}, iter([ONE, ONE])])
def test_what_is_no_instruction_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=rf"run\(\) sends a ServerMessage.*; not {type(wrong).__name__}"):
        paired(wrong, "ab")
