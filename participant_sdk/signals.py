"""SIGINT, SIGTERM and SIGHUP as a wish to stop, while something runs in the main thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


@contextmanager
def stop_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Within the block, the first of the signals calls ``stop``; a second one does what it always did.

    ``stop`` runs in a signal handler: it must do no more than pass the wish on. In any other thread than the
    main one, which alone may handle signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    if hasattr(signal, "SIGHUP") and previous[signal.SIGHUP] is signal.SIG_IGN:
        del previous[signal.SIGHUP]  # as nohup wants it

    def restore() -> None:
        for number, handler in previous.items():
            if handler is not None:  # None: set by a C library, which Python can't put back
                signal.signal(number, handler)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        restore()
        stop()

    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        restore()
