"""``manager start``: one worker process. The coordinator runs it; people rarely do.

Exit codes: 0 drained; 2 usage; 3 could not start (the coordinator doesn't try again); 4 the link to the
coordinator is of no use any more. Workers write no core files, which are as large as their memory and could
fill a disk, unless MUSTER_CORE_DUMPS=1 is in the environment.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from manager.errors import StartError
from manager.limits import FEW_FILES, MORE_FILES, room
from manager.listen import Address
from manager.logs import LogFormat, configure
from manager.loop import new_event_loop
from manager.options import (
    HELP,
    AddressType,
    Number,
    Whole,
    limit_options,
    log_options,
    option,
    security_options,
    take_limits,
    take_security,
)
from manager.timeouts import EXIT_TIMEOUT
from manager.usage import (
    allow_many_files,
    bind_to_cpu,
    forbid_core_dumps,
    leave_linear_algebra_single,
)
from protos.version import VERSION

CORE_DUMPS = "MUSTER_CORE_DUMPS"
"""Variable of the environment: 1 lets a worker that is aborted or crashes write a core file."""

EXIT_COULD_NOT_START = 3
EXIT_LINK_LOST = 4

log = logging.getLogger("muster.worker")


@click.group(context_settings=HELP)
@click.version_option(VERSION, prog_name="manager")
def main() -> None:
    """A worker of a Muster cluster. `coordinator start` runs as many as you ask it for."""


@main.command(short_help="Run one worker in the foreground.")
@option("--coordinator", required=True, metavar="ENDPOINT", help="ZeroMQ endpoint of the link.")
@option("--index", type=Whole(0), required=True, help="Which worker this is.")
@option("--incarnation", type=Whole(1), default=1, help="Which life of it.")
@option("--listen", type=AddressType(), required=True, help="Where participants connect.")
@option("--share-port/--own-port", default=False, help="Share the port with other workers (Linux).")
@option(
    "--orphan-grace",
    type=Number(0),
    default=30.0,
    metavar="SECONDS",
    help="How long to go on without a coordinator, and how long calls may go on after a SIGTERM.",
)
# Not from the environment: there MUSTER_PIN is the coordinator's, and means something else. And limits that
# the coordinator has by an option must not be mixed with others of the environment.
@click.option(
    "--link-keys",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The keys of a link over TCP (`coordinator certs` makes them).",
)
@click.option("--pin", type=Whole(0), metavar="N", help="Bind to the Nth CPU of those allowed.")
@click.option("--reducer", "reducers", multiple=True, metavar="MODULE:CLASS", help="One that may be used.")
@click.option(
    "--import-from",
    "import_from",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Where else to look for reducers' modules.",
)
@security_options(click.option)
@limit_options(click.option)
@log_options
def start(
    coordinator: str,
    index: int,
    incarnation: int,
    listen: Address,
    share_port: bool,
    orphan_grace: float,
    link_keys: Path | None,
    pin: int | None,
    reducers: tuple[str, ...],
    import_from: tuple[Path, ...],
    log_level: str,
    log_format: LogFormat,
    **options: Any,
) -> None:
    """Run one worker in the foreground until it is drained or has no coordinator."""
    configure(log_level, log_format, lazily=True, worker=index)
    limits, security = take_limits(options), take_security(options)
    leave_linear_algebra_single()
    from manager import worker  # grpc and zmq load here: --help stays fast
    from manager.link.keys import keys_for

    sys.path += map(str, import_from)  # last: they must not hide anything

    async def run(settings: worker.WorkerSettings) -> str | None:
        return await worker.Worker(settings).run()

    try:
        if pin is not None:
            bind_to_cpu(pin)
        faulthandler.enable()  # one that hangs gets a SIGABRT before it is killed
        if os.environ.get(CORE_DUMPS, "0") in ("", "0"):
            forbid_core_dumps()
        files = allow_many_files()
        try:
            participants = room(limits, files).participants
        except ValueError as error:
            raise StartError(str(error)) from None
        if files < FEW_FILES and index == 0:  # once: it is the same for all of them
            log.warning(
                "a process may open only %d files here: %d participants per worker; %s",
                files,
                participants,
                MORE_FILES,
            )
        settings = worker.WorkerSettings(
            coordinator,
            index,
            incarnation,
            listen,
            share_port,
            orphan_grace,
            reducers,
            limits,
            files,
            security,
            keys_for(coordinator, link_keys),
        )
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            reason = runner.run(run(settings))
        # Python waits for threads at its end, and a custom reducer may hang in one: nobody waits for that.
        faulthandler.dump_traceback_later(EXIT_TIMEOUT, exit=True)
    except StartError as error:
        log.error("worker %d can't start: %s", index, error)
        sys.exit(EXIT_COULD_NOT_START)
    if reason is not None:
        log.warning("worker %d exits: %s", index, reason)
        sys.exit(EXIT_LINK_LOST)
