"""What the person at the screen sees.

Decides how progress looks: on a terminal a live bar under the lines; elsewhere (a pipe, a log file, honcho)
the lines alone, each with the bar in plain characters. What is said, and when, is train.py's business.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

BAR_WIDTH = 20


class Display:
    """Lines of text, and one progress bar at a time. Use it as a context manager."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        console = Console(highlight=False, markup=False, soft_wrap=True)  # flushes after every line
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=console,
            transient=True,
            disable=not self._is_terminal,
        )

    def begin(self, what: str, total: int) -> None:
        """Starts a new bar, in place of the last one."""
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._bar.add_task(what, total=total)

    def advance(self, done: int, line: str = "") -> None:
        """Moves the bar to ``done``, and prints the line if there is one."""
        task = self._bar.tasks[-1]
        self._bar.update(task.id, completed=done)
        if line and not self._is_terminal:
            filled = round(BAR_WIDTH * task.percentage / 100)
            line += f"  [{'#' * filled}{'-' * (BAR_WIDTH - filled)}]"
        if line:
            self.say(line)

    def say(self, line: str) -> None:
        self._bar.console.print(line)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
