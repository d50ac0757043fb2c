"""What the tests of examples share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.examples.procfile import left_running, marked_environment


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """For a Procfile. Whatever was started with it is killed in the end."""
    environment = marked_environment(tmp_path)
    yield environment
    left = left_running(environment)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=5)
