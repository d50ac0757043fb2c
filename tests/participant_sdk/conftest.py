"""Every test here must leave the process as it found it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = {thread for thread in set(threading.enumerate()) - before if "_poll_wrapper" not in thread.name}
    assert not left, f"left behind: {left}"  # but for gRPC's poller, which lives as long as the process
