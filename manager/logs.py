"""How log records look: lines for people, or JSON for programs.

The packages log with the standard library, so that whoever embeds them stays in charge; only the command
lines call ``configure``, which renders with structlog.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

import structlog

LogFormat = Literal["console", "json"]

LOG_LEVELS = ["debug", "info", "warning", "error", "critical"]
LOG_FORMATS = ["console", "json"]


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever sys.stderr is at the time: a live display may have put itself before it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        super().emit(record)


def configure(level: str, log_format: LogFormat, **fields: object) -> None:
    """Sends all log records of at least ``level`` to stderr; ``fields`` are added to each."""

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
        final = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)]
    handler = _StderrHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("grpc").setLevel(logging.ERROR)  # it warns of every stream that a stop ends
    logging.getLogger("muster").setLevel(level.upper())
