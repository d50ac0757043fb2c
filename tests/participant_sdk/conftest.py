"""Every test here must leave the process as it found it. Participants come in both flavours."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from participant_sdk import Participant, aio
from tests.participant_sdk.support import Make, Runs


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = {thread for thread in set(threading.enumerate()) - before if "_poll_wrapper" not in thread.name}
    assert not left, f"left behind: {left}"  # but for gRPC's poller, which lives as long as the process


def run_blocking(participant: Participant, address: str, **options: Any) -> None:
    participant.run(address, **options)


def run_asyncio(participant: aio.Participant, address: str, **options: Any) -> None:
    asyncio.run(participant.run(address, **options))


@pytest.fixture(params=["blocking", "asyncio"])
def flavour(request: pytest.FixtureRequest) -> tuple[Make, Runs]:
    if request.param == "blocking":
        return Participant, run_blocking
    return aio.Participant, run_asyncio


@pytest.fixture
def make(flavour: tuple[Make, Runs]) -> Make:
    return flavour[0]


@pytest.fixture
def run(flavour: tuple[Make, Runs]) -> Runs:
    return flavour[1]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "muster.participant"):
        yield caplog
