"""How log records look: lines for people, or JSON for programs.

The packages log with the standard library, so that whoever embeds them stays in charge; only the command
lines call ``configure``, which renders with structlog.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TextIO

LogFormat = Literal["console", "json"]

LOG_LEVELS = ["debug", "info", "warning", "error", "critical"]
LOG_FORMATS = ["console", "json"]


SPARING_INTERVAL = 10.0
"""Seconds in which what others can cause takes one line of the log, and another one for the rest of it."""


class Sparingly:
    """Log lines that others can cause, participants or strangers, or that come by the second: they must not
    be able to fill a disk.

    Of each kind the first is logged at once, and then every SPARING_INTERVAL how many more there were, with
    the last of them. To be used on an event loop.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._more: Counter[str] = Counter()
        # The last of each kind of which there was a line of late:
        self._last: dict[str, tuple[int, str, tuple[object, ...]]] = {}

    def warning(self, kind: str, text: str, *arguments: object) -> None:
        """A line like ``logging.Logger.warning``. There must be few kinds."""
        self._note(logging.WARNING, kind, text, arguments)

    def info(self, kind: str, text: str, *arguments: object) -> None:
        self._note(logging.INFO, kind, text, arguments)

    def exception(self, kind: str, text: str, *arguments: object) -> None:
        """An error, the first of its kind with the traceback of the exception that is being handled."""
        self._note(logging.ERROR, kind, text, arguments)

    def _note(self, level: int, kind: str, text: str, arguments: tuple[object, ...]) -> None:
        if kind in self._last:
            self._more[kind] += 1
        else:
            self._log.log(level, text, *arguments, exc_info=level == logging.ERROR)
            asyncio.get_running_loop().call_later(SPARING_INTERVAL, self._sum_up, kind)
        self._last[kind] = (level, text, arguments)

    def _sum_up(self, kind: str) -> None:
        level, text, arguments = self._last.pop(kind)
        more = self._more.pop(kind, 0)
        if more:
            self._last[kind] = (level, text, arguments)
            asyncio.get_running_loop().call_later(SPARING_INTERVAL, self._sum_up, kind)
            self._log.log(
                level, f"{text} (the last of %d more like this in %g s)", *arguments, more, SPARING_INTERVAL
            )


def keep_headers_out() -> None:
    """Keeps gRPC from logging what others send as headers.

    It logs each that isn't UTF-8, with a traceback: strangers could fill a disk with lines of their own, and
    who mistypes a token would find it there. May be called more than once.
    """
    logging.getLogger("grpc._cython.cygrpc").addFilter(_says_no_header)


def _says_no_header(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Invalid encoding on")


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever sys.stderr is at the time: a live display may have put itself before it."""

    def __init__(self, formatter: Callable[[], logging.Formatter]) -> None:
        """``formatter`` is called with the first record."""
        super().__init__()
        self._make = formatter

    def emit(self, record: logging.LogRecord) -> None:
        if self.formatter is None:
            self.setFormatter(self._make())
        self.setStream(sys.stderr)
        super().emit(record)


def configure(level: str, log_format: LogFormat, *, lazily: bool = False, **fields: object) -> None:
    """Sends all log records of at least ``level`` to stderr; ``fields`` are added to each.

    ``lazily`` is for processes many of which never log anything: they load structlog with the first record.
    Others call this while they have one thread.
    """
    if not lazily:
        with _without_rich():
            import structlog  # noqa: F401
    root = logging.getLogger()
    root.handlers[:] = [_StderrHandler(lambda: _formatter(log_format, fields))]
    root.setLevel(logging.WARNING)
    logging.getLogger("grpc").setLevel(logging.ERROR)  # it warns of every stream that a stop ends
    logging.getLogger("muster").setLevel(level.upper())


@contextmanager
def _without_rich() -> Iterator[None]:
    """Hides rich from structlog, which would load it, for a kind of traceback that isn't used here.

    That is three quarters of what structlog costs: 40 ms and 5 MiB. Without what it hides other threads
    couldn't import it either.
    """
    if "rich" in sys.modules:
        yield
        return
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["rich"]


def _formatter(log_format: LogFormat, fields: Mapping[str, object]) -> logging.Formatter:
    import structlog

    def add_fields(
        _logger: object, _name: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        return {**fields, **event}

    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        add_fields,
    ]
    final: list[structlog.typing.Processor]
    if log_format == "json":
        shared += [
            structlog.stdlib.ExtraAdder(),  # what people read in the sentence, programs get by name
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
        ]
        final = [structlog.processors.JSONRenderer()]
    else:
        shared.append(structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False))
        final = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                pad_event_to=0,
                # Its default shows all local variables, hence tokens, keys and models.
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
    )
