"""A coordinator in the foreground of a terminal: brought up, shown, and stopped by signals.

Decides what a signal means: the first stops the coordinator, once running calls are done; the next one does
not wait for them.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from coordinator.commands.view import UPDATE_INTERVAL, LogView, View, log, time_to_finish
from coordinator.running import RunningCoordinator
from coordinator.settings import Settings
from coordinator.workers.supervisor import ALL_GIVEN_UP
from manager.errors import StartError
from manager.usage import calm_garbage_collection


class _Signals:
    """``stop`` and ``hurry`` are done once they are asked for."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.stop, self.hurry = loop.create_future(), loop.create_future()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupted)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # not under nohup
            # The terminal is gone; often a SIGTERM's companion, which must not count as the second.
            loop.add_signal_handler(signal.SIGHUP, self._ask, self.stop)

    def _interrupted(self) -> None:
        self._ask(self.hurry if self.stop.done() else self.stop)

    @staticmethod
    def _ask(wish: asyncio.Future[Any]) -> None:
        if not wish.done():
            wish.set_result(None)


async def serve(settings: Settings, *, live: bool) -> None:
    """Runs a coordinator until a signal or a command ends it; ``live`` is for a terminal.

    Raises StartError if it can't start, or can't go on.
    """
    signals = _Signals()
    coordinator = RunningCoordinator(settings)
    if not await _started(coordinator, signals):
        return
    calm_garbage_collection()
    _announce(coordinator, settings)
    try:
        await _show(coordinator, signals, _view(live))
    finally:
        await _stop(coordinator, signals, settings.grace)
    if coordinator.failed.is_set():
        raise StartError(ALL_GIVEN_UP)


def _view(live: bool) -> View:
    if not live:
        return LogView()
    from coordinator.commands.terminal import LiveView  # with rich

    return LiveView()


async def _started(coordinator: RunningCoordinator, signals: _Signals) -> bool:
    """False if a signal came before."""
    starting = asyncio.ensure_future(coordinator.start())
    await asyncio.wait([starting, signals.stop], return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        await starting
        return True
    starting.cancel()
    await asyncio.wait([starting])
    return False


def _announce(coordinator: RunningCoordinator, settings: Settings) -> None:
    up = coordinator.workers_up
    log.info(
        "%s up; participants connect to %s, training scripts to %s",
        "1 worker is" if up == 1 else f"{up} workers are",
        ", ".join(coordinator.addresses),
        coordinator.control,
        extra={"workers": settings.workers, "listen": coordinator.listen, "control": coordinator.control},
    )
    if not settings.share_port:
        log.info("workers don't share a port here; spread participants over the addresses yourself")


async def _show(coordinator: RunningCoordinator, signals: _Signals, view: View) -> None:
    """Until it is to stop."""
    failed = asyncio.ensure_future(coordinator.failed.wait())
    try:
        with view:
            while not (signals.stop.done() or failed.done() or coordinator.stopping):
                view.update(coordinator.status())
                await asyncio.wait(
                    [signals.stop, failed], timeout=UPDATE_INTERVAL, return_when=asyncio.FIRST_COMPLETED
                )
            view.update(coordinator.status())
    finally:
        failed.cancel()


async def _stop(coordinator: RunningCoordinator, signals: _Signals, grace: float) -> None:
    calls = len(coordinator.dispatcher.calls)
    # A signal shortens what `coordinator drain` may have begun.
    patience = coordinator.drain(grace if signals.stop.done() else None)
    log.info("stopping%s", f": {time_to_finish(calls, patience)}" if calls else "")
    stopping = asyncio.ensure_future(coordinator.stop())
    if not signals.stop.done():
        await asyncio.wait([stopping, signals.stop], return_when=asyncio.FIRST_COMPLETED)
        coordinator.drain(grace)
    await asyncio.wait([stopping, signals.hurry], return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        coordinator.hurry()
    await stopping
    log.info("stopped")
