"""The ``coordinator`` command, and its first subcommand: start one.

remote.py has those for a running one, certs.py the one that makes certificates.

Exit codes: 0 all well; 1 it could not be done (the last line says why); 2 usage.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from coordinator.commands import remote
from coordinator.commands.certs import certs
from coordinator.commands.remote import CONTROL_METAVAR, ControlType, fail
from coordinator.commands.tokens import tokens
from coordinator.settings import DEFAULT_CONTROL, DEFAULT_LISTEN, Settings, default_workers
from manager.errors import AddressInUse, StartError
from manager.limits import room
from manager.listen import CAN_SHARE_PORT
from manager.logs import LogFormat, configure
from manager.loop import new_event_loop
from manager.options import (
    CONFIG,
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
from manager.usage import allow_many_files, leave_linear_algebra_single
from protos.version import VERSION


@click.group(context_settings=HELP)
@click.version_option(VERSION, prog_name="coordinator")
def main() -> None:
    """Muster: coordinate the participants of federated learning, on every core.

    `coordinator start` runs the workers that participants connect to. A training script then attaches with
    coordinator.connect("127.0.0.1:50050").
    """


def read_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    """Makes the values of a TOML file the defaults of the command's options."""
    if path is None:
        return
    import tomllib  # most starts need none

    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.BadParameter(f"can't read {path}: {error}") from None
    known = {
        name.removeprefix("--").replace("-", "_"): param
        for param in ctx.command.params
        for name in param.opts
        if param.name != "config"
    }
    values = {key.replace("-", "_"): value for key, value in values.items()}
    unknown = sorted(set(values) - set(known))
    if unknown:
        names = ", ".join(sorted(known))
        raise click.BadParameter(f"{path}: unknown setting {', '.join(unknown)}; there are: {names}")
    typed: dict[str, str | list[str]] = {}
    for key, value in values.items():
        # As if they had been typed, so that they are checked like anything on the command line.
        several = isinstance(value, list) and getattr(known[key], "multiple", False)
        items = value if several else [value]
        if not all(isinstance(item, str | int | float) for item in items):
            raise click.BadParameter(f"{path}: {key} must be a single value, not {value}")
        typed[str(known[key].name)] = [str(item) for item in items] if several else str(value)
    ctx.meta[CONFIG] = path
    ctx.default_map = {**(ctx.default_map or {}), **typed}


@main.command()
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="MUSTER_CONFIG",
    show_envvar=True,
    is_eager=True,
    expose_value=False,
    callback=read_config,
    help="TOML file with any of these options, such as: workers = 8",
)
@option(
    "--workers",
    type=Whole(1),
    default=default_workers,
    show_default="one per CPU",
    help="How many worker processes.",
)
@option("--listen", type=AddressType(), default=DEFAULT_LISTEN, help="Where participants connect.")
@option(
    "--control",
    type=ControlType(),
    metavar=CONTROL_METAVAR,
    default=DEFAULT_CONTROL,
    help="Where training scripts connect, and commands such as `coordinator status`: a loopback address, a "
    "Unix socket, or with TLS and --control-tokens any other address.",
)
@option(
    "--control-tokens",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Scripts and commands need a token of this file, which `coordinator tokens` writes. It must not be "
    "that of participants.",
)
@option("--link", default="ipc", metavar="ipc|tcp://HOST:PORT", help="How workers reach the coordinator.")
@option(
    "--link-keys",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keys for a link over TCP, which is encrypted with them (`coordinator certs` makes them).",
)
@option(
    "--share-port/--own-ports",
    default=CAN_SHARE_PORT,
    show_default="shared on Linux",
    help="All workers on one port, or on consecutive ones from --listen on.",
)
@option("--pin", is_flag=True, help="Bind each worker to a CPU of its own. Measure first: it often costs.")
@option(
    "--grace",
    type=Number(0),
    default=10.0,
    metavar="SECONDS",
    help="How long running calls may go on when stopping.",
)
@option(
    "--orphan-grace",
    type=Number(1),
    default=30.0,
    metavar="SECONDS",
    help="How long workers keep their participants for the next coordinator, should this one be killed. "
    "Also how long calls may go on at a worker that you send a SIGTERM by hand.",
)
@option(
    "--max-participants",
    type=Whole(1),
    metavar="N",
    help="Participants in all. More are told to come back later.  [default: as many as the workers take]",
)
@option("--max-scripts", type=Whole(1), default=100, help="Training scripts attached at once.")
@option(
    "--run-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the next coordinator finds this one's workers.  [default: by the address to listen on]",
)
@option(
    "--reducer",
    "reducers",
    multiple=True,
    metavar="MODULE:CLASS",
    help="A reducer of your own that scripts may name; may be given several times.",
)
@security_options(option)
@limit_options(option)
@log_options
def start(log_level: str, log_format: LogFormat, share_port: bool, **options: Any) -> None:
    """Run a coordinator and its workers in the foreground.

    Ctrl-C or SIGTERM stops it: running calls may finish, participants are told to come back later. A second
    Ctrl-C doesn't wait.
    """
    configure(log_level, log_format)
    leave_linear_algebra_single()
    if share_port and not CAN_SHARE_PORT:
        raise click.UsageError("this platform can't share a port between workers; use --own-ports")
    limits, security = take_limits(options), take_security(options)
    try:
        room(limits, allow_many_files())  # those of this process are those of its workers
        settings = Settings(
            limits=limits,
            security=security,
            share_port=share_port,
            log_level=log_level,
            log_format=log_format,
            **options,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if settings.reducers:
        sys.path.append(str(Path.cwd()))  # last: it must not hide anything
    live = log_format == "console" and sys.stderr.isatty()
    from coordinator.commands.foreground import serve  # grpc and zmq load here: --help stays fast

    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve(settings, live=live))
    except AddressInUse as error:
        fail(f"{error} with {'--control' if error.address == str(settings.control) else '--listen'}")
    except StartError as error:
        fail(str(error))


for command in [*remote.COMMANDS, tokens, certs]:
    main.add_command(command)
