"""What the person at the screen sees.

Decides how progress looks: on a terminal live bars under the lines; elsewhere (a pipe, a log file, honcho)
the lines alone, each with the bar in plain characters. What is said, and when, is the scripts' business.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from manager.api.outcome import Progress

BAR_WIDTH = 20


def round_of(number: int, rounds: int) -> str:
    """How the line of a round begins: as wide for the first as for the last."""
    return f"round {number:{len(str(rounds))}}"


class Display:
    """Lines of text, and a progress bar; while a call is followed, a second one for that. Use it as a context
    manager.
    """

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        console = Console(highlight=False, markup=False, soft_wrap=True)  # flushes after every line
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=console,
            transient=True,
            disable=not self._is_terminal,
        )
        self._main = self._bars.add_task("", visible=False)
        self._call = self._bars.add_task("answers", visible=False)
        self._done = 0

    def begin(self, what: str, total: int) -> None:
        """Starts a new bar, in place of the last one."""
        self._done = 0
        self._bars.reset(self._main, description=what, total=total, visible=True)
        self._bars.update(self._call, visible=False)

    def advance(self, done: int, line: str = "") -> None:
        """Moves the bar to ``done``, and prints the line if there is one."""
        self._done = done
        self._bars.update(self._main, completed=done)
        if self._bars.tasks[0].finished:
            self._bars.update(self._call, visible=False)
        if line and not self._is_terminal:
            filled = round(BAR_WIDTH * self._bars.tasks[0].percentage / 100)
            line += f"  [{'#' * filled}{'-' * (BAR_WIDTH - filled)}]"
        if line:
            self.say(line)

    def follow(self, call: Progress) -> None:
        """Shows how far a call is that is one step of the bar; to be passed as ``progress=``."""
        ended = call.answered + call.failed
        self._bars.update(self._main, completed=self._done + ended / call.asked)
        self._bars.update(self._call, completed=ended, total=call.asked, visible=True)

    def say(self, line: str) -> None:
        self._bars.console.print(line)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()
