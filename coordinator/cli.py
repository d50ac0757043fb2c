"""The ``coordinator`` command: start one, look at a running one.

Exit codes: 0 all well; 1 it could not be done (the last line says why); 2 usage.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console

from coordinator.settings import DEFAULT_CONTROL, DEFAULT_LISTEN, Settings, default_workers
from manager.errors import StartError
from manager.listen import CAN_SHARE_PORT, Address
from manager.logs import LogFormat, configure
from manager.loop import new_event_loop
from manager.options import AddressType, log_options, option
from manager.usage import allow_many_files, calm_garbage_collection
from protos import control_pb2

UPDATE_INTERVAL = 0.5
"""Seconds between two looks of the live display."""

ANSWER_TIMEOUT = 5.0
"""Seconds that ``status`` and the like wait for a running coordinator."""


@click.group()
@click.version_option(version("muster"), prog_name="coordinator")
def main() -> None:
    """Muster: coordinate the participants of federated learning, on every core.

    `coordinator start` runs the workers that participants connect to. A training script then attaches with
    coordinator.connect("127.0.0.1:50050").
    """


def read_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    """Makes the values of a TOML file the defaults of the command's options."""
    if path is None:
        return
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
    type=click.IntRange(1),
    default=default_workers,
    show_default="one per CPU",
    help="How many worker processes.",
)
@option("--listen", type=AddressType(), default=DEFAULT_LISTEN, help="Where participants connect.")
@option(
    "--control",
    type=AddressType(),
    default=DEFAULT_CONTROL,
    help="Where scripts and `status` connect.",
)
@option("--link", default="ipc", metavar="ipc|tcp://HOST:PORT", help="How workers reach the coordinator.")
@option(
    "--share-port/--own-ports",
    default=CAN_SHARE_PORT,
    show_default="shared on Linux",
    help="All workers on one port, or on consecutive ones from --listen on.",
)
@option("--pin", is_flag=True, help="Bind each worker to a CPU of its own. Measure first: it often costs.")
@option(
    "--grace",
    type=click.FloatRange(0),
    default=10.0,
    metavar="SECONDS",
    help="How long running calls may go on when stopping.",
)
@option(
    "--run-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for the link's socket.  [default: a private temporary one]",
)
@option(
    "--reducer",
    "reducers",
    multiple=True,
    metavar="MODULE:CLASS",
    help="A reducer of your own that scripts may name; may be given several times.",
)
@log_options
def start(log_level: str, log_format: LogFormat, share_port: bool, **options: Any) -> None:
    """Run a coordinator and its workers in the foreground.

    Ctrl-C or SIGTERM stops it: running calls may finish, participants are told to come back later. A second
    Ctrl-C doesn't wait.
    """
    configure(log_level, log_format)
    if share_port and not CAN_SHARE_PORT:
        raise click.UsageError("this platform can't share a port between workers; use --own-ports")
    try:
        settings = Settings(share_port=share_port, log_level=log_level, log_format=log_format, **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if settings.reducers:
        sys.path.append(str(Path.cwd()))  # last: it must not hide anything
    allow_many_files()
    live = log_format == "console" and sys.stderr.isatty()
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(_serve(settings, live))
    except StartError as error:
        _fail(str(error))


async def _serve(settings: Settings, live: bool) -> None:
    from coordinator.running import RunningCoordinator  # grpc and zmq load here: --help stays fast
    from coordinator.view import LiveView, LogView, View, log

    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def interrupted() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)

    coordinator = RunningCoordinator(settings)
    starting = asyncio.ensure_future(coordinator.start())
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait([starting])
        return
    await starting
    calm_garbage_collection()
    log.info(
        "%d workers are up; participants connect to %s, training scripts to %s",
        settings.workers,
        ", ".join(coordinator.addresses),
        coordinator.control,
        extra={"workers": settings.workers, "listen": coordinator.listen, "control": coordinator.control},
    )
    if not settings.share_port:
        log.info("workers don't share a port here; spread participants over the addresses yourself")
    view: View = LiveView() if live else LogView()
    try:
        with view:
            while not stop.is_set():
                view.update(coordinator.status())
                await asyncio.wait([stopped], timeout=UPDATE_INTERVAL)
            view.update(coordinator.status())
    finally:
        calls = len(coordinator.dispatcher.calls)
        patience = f": {calls} running calls have {settings.grace:g} s to finish" if calls else ""
        log.info("stopping%s", patience)
        stopping = asyncio.ensure_future(coordinator.stop())
        hurried = asyncio.ensure_future(hurry.wait())
        await asyncio.wait([stopping, hurried], return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            coordinator.hurry()
        await stopping
        hurried.cancel()
        log.info("stopped")


control_option = option(
    "--control", type=AddressType(), default=DEFAULT_CONTROL, help="The coordinator's control address."
)
json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


@main.command()
@control_option
@json_option
def status(control: Address, as_json: bool) -> None:
    """Show a running coordinator: workers, participants, outcomes so far."""
    from coordinator.view import as_dict, render_status

    with _Asking(control) as stub:
        answer = stub.GetStatus(control_pb2.StatusRequest(), timeout=ANSWER_TIMEOUT)
    if as_json:
        click.echo(json.dumps(as_dict(answer), indent=2))
    else:
        Console().print(render_status(answer))


class Pairs(click.ParamType[tuple[str, str]]):
    name = "key=value"

    def convert(
        self, value: str | tuple[str, str], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, wanted = value.partition("=")
        if not equals or not key:
            self.fail(f"{value!r}: write key=value", param, ctx)
        return key, wanted


@main.command()
@control_option
@click.option("--where", type=Pairs(), multiple=True, help="Only those with this attribute. May be repeated.")
@json_option
def participants(control: Address, where: tuple[tuple[str, str], ...], as_json: bool) -> None:
    """List the participants that are connected now."""
    from coordinator.view import as_dict, render_participants

    request = control_pb2.ListParticipantsRequest(where=dict(where))
    with _Asking(control) as stub:
        pages = stub.ListParticipants(request, timeout=ANSWER_TIMEOUT)
        found = [participant for page in pages for participant in page.participants]
    if as_json:
        click.echo(json.dumps([as_dict(participant) for participant in found], indent=2))
    elif found:
        Console().print(render_participants(found))
    else:
        click.echo("no participants" + (" match" if where else " are connected"))


class _Asking:
    """A stub of the control API; what goes wrong ends the command with a sentence."""

    def __init__(self, control: Address) -> None:
        self._control = control

    def __enter__(self) -> Any:
        import grpc

        from coordinator.control import CONTROL_OPTIONS
        from protos.control_pb2_grpc import ControlStub

        self._channel = grpc.insecure_channel(str(self._control), options=CONTROL_OPTIONS)
        return ControlStub(self._channel)

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        import grpc

        self._channel.close()
        if isinstance(error, grpc.RpcError):
            code = error.code() if hasattr(error, "code") else None
            if code is grpc.StatusCode.UNAVAILABLE:
                _fail(f"no coordinator answers at {self._control}; is `coordinator start` running?")
            if code is grpc.StatusCode.UNIMPLEMENTED:
                _fail(f"{self._control} is not a control address (participants connect there?)")
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                _fail(f"the coordinator at {self._control} did not answer within {ANSWER_TIMEOUT:g} s")
            _fail(f"the coordinator at {self._control} could not answer: {error}")


def _fail(text: str) -> NoReturn:
    click.echo(f"Error: {text}", err=True)
    sys.exit(1)
