"""What people write into settings is checked against the types of their fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.settings import make_settings
from manager import Security
from manager.limits import Limits


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"workers": "2"}, "workers must be a whole number, not '2'"),
        ({"workers": 2.5}, "workers must be a whole number, not 2.5"),
        ({"workers": True}, "workers must be a whole number, not True"),
        ({"grace": "10"}, "grace must be a number, not '10'"),
        ({"pin": "yes"}, "pin must be True or False, not 'yes'"),
        ({"listen": 50051}, "listen must be a Address, not 50051"),
        ({"control": 50050}, "control must be a Address or a UnixAddress or None, not 50050"),
        ({"link": 5}, "link must be text, not 5"),
        ({"run_dir": 5}, "run_dir must be a Path or None, not 5"),
        ({"max_participants": 2.5}, "max_participants must be a whole number or None, not 2.5"),
        ({"security": True}, "security must be a Security, not True"),
        ({"limits": {"max_message": 1}}, "limits must be a Limits, not {'max_message': 1}"),
        ({"reducers": [1]}, "reducers must be a tuple of text, not (1,)"),
    ],
)
def test_a_slip_is_a_sentence_that_names_the_field(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError) as caught:
        make_settings(**settings)
    assert str(caught.value) == words


@pytest.mark.parametrize("window", [(1, 2, 3), [1, 2], (1, "2")])
def test_a_window_is_two_numbers(window: Any) -> None:
    with pytest.raises(TypeError, match="come_back must be a tuple of 2: a number, not"):
        Limits(come_back=window)


def test_numbers_may_be_numpys_and_files_text_or_paths() -> None:
    settings = make_settings(workers=np.int64(2), grace=np.float32(1.5))
    assert (settings.workers, settings.grace) == (2, 1.5)
    assert Limits(max_joins=5, come_back=(1, 2)).max_joins == 5
    assert Security(tokens="/t").tokens == Security(tokens=Path("/t")).tokens
