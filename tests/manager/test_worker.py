"""A worker in which something goes wrong that shouldn't: it must neither fall silent nor stay for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from manager.link.uplink import Drain
from manager.listen import Address
from manager.worker import Worker, WorkerSettings


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    """Of a worker that nobody answers."""
    endpoint = f"ipc://{tmp_path}/link.sock"
    return WorkerSettings(endpoint, 0, 1, Address("127.0.0.1", 0), share_port=False, orphan_grace=0.4)


def broken(*args: object, **named: object) -> Any:
    raise RuntimeError("broken")


def run(worker_settings: WorkerSettings, patch: str, monkeypatch: pytest.MonkeyPatch) -> str | None:
    async def main() -> str | None:
        worker = Worker(worker_settings)
        drain = worker._endpoint.drain
        monkeypatch.setattr(patch, broken)
        async with asyncio.timeout(20):
            reason = await worker.run()
        await drain(0.0)  # a process's end would do as well
        return reason

    return asyncio.run(main())


def test_a_worker_that_can_not_say_how_it_is_notices_that_it_has_no_coordinator(
    settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reason = run(settings, "manager.worker.resident_bytes", monkeypatch)
    assert reason is not None
    assert "no word from the coordinator" in reason
    (record,) = [record for record in caplog.records if "can't say how this worker is" in record.message]
    assert record.exc_info is not None


def test_a_heartbeat_that_goes_wrong_is_not_the_last(
    settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first Hello can't be made; the next can."""
    hello, failures = Worker._hello, iter([broken])

    def once(self: Worker) -> object:
        next(failures, hello)(self)
        return hello(self)

    monkeypatch.setattr(Worker, "_hello", once)
    monkeypatch.setattr("manager.worker.BEAT_PAUSE", 0.01)
    reason = run(settings, "manager.worker.trim", monkeypatch)
    assert reason is not None
    assert "no word from the coordinator" in reason
    assert "the link to the coordinator could not be served" in caplog.text


@pytest.mark.parametrize(
    "what",
    [
        "manager.serving.endpoint.Endpoint.drain",
        "manager.serving.folding.Folding.finish",
        "manager.link.uplink.Uplink.goodbye",
    ],
)
def test_a_worker_whose_drain_goes_wrong_exits_and_says_why(
    settings: WorkerSettings, what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("manager.link.uplink.Uplink._close", lambda self, reason: [Drain(0.0)])
    assert run(settings, what, monkeypatch) == "its drain went wrong: broken"
    assert "it exits all the same" in caplog.text
