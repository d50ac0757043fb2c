"""What participants and strangers can cause takes few lines of the log, and nothing of it goes uncounted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest

from manager.logs import LOG_FORMATS, LogFormat, Sparingly, configure
from tests.manager.support import LoopClock

log = logging.getLogger("muster.test")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("manager.logs.SPARING_INTERVAL", 0.2)
    caplog.set_level(logging.INFO, "muster.test")


async def until(lines: int, caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(20):
        while len(caplog.messages) < lines:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


def test_of_each_kind_there_is_a_line_and_then_how_many_more(caplog: pytest.LogCaptureFixture) -> None:
    async def flood() -> None:
        sparing = Sparingly(log)
        for number in range(1000):
            sparing.warning("breach", "ended %s", number)
        sparing.info("other", "told %s", "somebody")
        assert caplog.messages == ["ended 0", "told somebody"]
        await until(3, caplog)
        assert caplog.messages[2] == "ended 999 (the last of 999 more like this in 0.2 s)"
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]

    asyncio.run(flood())


def test_while_it_goes_on_there_is_a_line_per_interval(caplog: pytest.LogCaptureFixture) -> None:
    async def drip() -> None:
        clock, sparing = LoopClock(), Sparingly(log)
        for number in range(100):
            sparing.warning("breach", "ended %s", number)
            await clock.passes(0.01)
        assert 5 <= len(caplog.messages) <= 6, "one at once, and one per 0.2 s of the second that it took"
        await clock.passes(0.5)
        assert not sparing._last
        more = [int(message.split(" more")[0].split()[-1]) for message in caplog.messages[1:]]
        assert sum(more) + 1 == 100

    asyncio.run(drip())


def test_after_a_quiet_time_the_next_is_logged_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def twice() -> None:
        sparing = Sparingly(log)
        sparing.warning("breach", "ended %s", 1)
        while sparing._last:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
        sparing.warning("breach", "ended %s", 2)
        assert caplog.messages == ["ended 1", "ended 2"]

    asyncio.run(twice())


def test_a_line_is_rendered_with_what_it_was_given_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    async def strange() -> None:
        sparing = Sparingly(log)
        for _ in range(2):
            sparing.warning("breach", "ended %s", "100 %s %d {x}")
        await until(2, caplog)
        assert caplog.messages[1] == "ended 100 %s %d {x} (the last of 1 more like this in 0.2 s)"

    asyncio.run(strange())


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in (None, "grpc", "muster")]
    handlers, levels = loggers[0].handlers[:], [each.level for each in loggers]
    yield
    loggers[0].handlers[:] = handlers
    for each, level in zip(loggers, levels, strict=True):
        each.setLevel(level)


@pytest.mark.parametrize("log_format", LOG_FORMATS)
@pytest.mark.usefixtures("logging_as_before")
def test_a_traceback_shows_no_variables(capsys: pytest.CaptureFixture[str], log_format: LogFormat) -> None:
    """There may be tokens, keys and models in them."""
    configure("info", log_format)
    token = "-".join(["a", "secret"])  # not in the source
    try:
        raise OSError("a bad disk")
    except OSError:
        log.exception("it can't be looked at")
    shown = capsys.readouterr().err
    assert "it can't be looked at" in shown
    assert "a bad disk" in shown
    assert "test_logs.py" in shown
    assert token not in shown
