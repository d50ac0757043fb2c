"""What is logged of a participant, and how the command's logs look: a line for people, or a JSON object for
machines. To stderr."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Final

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_log: Final = logging.getLogger("muster.participant")


def log_of(participant_id: str, level: int, text: str, error: BaseException | None = None) -> None:
    """Logs the text, and the error's traceback, as being about this participant."""
    who = f"{participant_id}: " if participant_id else ""
    _log.log(level, "%s%s", who, text, exc_info=error, extra={"participant": participant_id})


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (ISO 8601, UTC), level, logger, message, any extra fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


def set_up_logging(level: str, style: str) -> None:
    """``style`` is "console" or "json"; ``level`` the name of a logging level."""
    handler = logging.StreamHandler()
    if style == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
