"""``manager start``: one worker process. The coordinator runs it; people rarely do.

Exit codes: 0 drained; 2 usage; 3 could not start (the coordinator doesn't try again); 4 the link to the
coordinator is of no use any more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from importlib.metadata import version

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # before grpc is imported; its chatter helps nobody

import click

from manager.errors import StartError
from manager.listen import Address
from manager.logs import LogFormat, configure
from manager.loop import new_event_loop

EXIT_COULD_NOT_START = 3
EXIT_LINK_LOST = 4

log = logging.getLogger("muster.worker")


class AddressType(click.ParamType[Address]):
    """``host:port`` on the command line."""

    name = "host:port"

    def convert(
        self, value: str | Address, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        if isinstance(value, Address):
            return value
        try:
            return Address.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group(context_settings={"auto_envvar_prefix": "MUSTER"})
@click.version_option(version("muster"), prog_name="manager")
def main() -> None:
    """A worker of a Muster cluster. `coordinator start` runs as many as you ask it for."""


@main.command()
@click.option("--coordinator", required=True, metavar="ENDPOINT", help="ZeroMQ endpoint of the link.")
@click.option("--index", type=click.IntRange(0), required=True, help="Which worker this is.")
@click.option("--incarnation", type=click.IntRange(1), default=1, show_default=True, help="Which life of it.")
@click.option("--listen", type=AddressType(), required=True, help="Where participants connect.")
@click.option("--share-port/--own-port", default=False, help="Share the port with other workers (Linux).")
@click.option("--grace", type=click.FloatRange(0), default=30.0, show_default=True, metavar="SECONDS")
@click.option("--pin", type=click.IntRange(0), metavar="CPU", help="Bind to this CPU of those allowed.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option("--log-format", type=click.Choice(["console", "json"]), default="console", show_default=True)
def start(
    coordinator: str,
    index: int,
    incarnation: int,
    listen: Address,
    share_port: bool,
    grace: float,
    pin: int | None,
    log_level: str,
    log_format: LogFormat,
) -> None:
    """Run one worker in the foreground until it is drained or has no coordinator."""
    configure(log_level, log_format, worker=index)
    from manager import worker  # grpc and zmq load here: --help stays fast

    settings = worker.WorkerSettings(coordinator, index, incarnation, listen, share_port, grace)

    async def run() -> str | None:
        return await worker.Worker(settings).run()

    try:
        if pin is not None:
            worker.pin(pin)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            reason = runner.run(run())
    except StartError as error:
        log.error("worker %d can't start: %s", index, error)
        sys.exit(EXIT_COULD_NOT_START)
    if reason is not None:
        log.warning("worker %d exits: %s", index, reason)
        sys.exit(EXIT_LINK_LOST)
