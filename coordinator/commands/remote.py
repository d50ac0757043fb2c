"""The commands that speak to a running coordinator: look at it, drain it, restart its workers.

Exit codes as in cli.py. What goes wrong ends a command with a sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import click

from coordinator.control_address import ControlAddress, UnixAddress, parse
from coordinator.settings import DEFAULT_CONTROL
from manager.options import Number, ParamType
from protos import control_pb2

if TYPE_CHECKING:
    from coordinator.control.access import Access
    from protos.bearer import Metadata

ANSWER_TIMEOUT = 5.0
"""Seconds that a running coordinator gets to answer."""

LOOK_INTERVAL = 0.2
"""Seconds between two looks how the draining goes."""


CONTROL_METAVAR = "HOST:PORT|unix:PATH"


class ControlType(ParamType[ControlAddress]):
    """``host:port`` or ``unix:PATH`` on the command line."""

    name = "host:port|unix:path"

    def convert(
        self, value: str | ControlAddress, param: click.Parameter | None, ctx: click.Context | None
    ) -> ControlAddress:
        if not isinstance(value, str):
            return value
        try:
            return parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_ACCESS = [
    click.option(
        "--control",
        type=ControlType(),
        metavar=CONTROL_METAVAR,
        default=DEFAULT_CONTROL,
        show_default=True,
        envvar="MUSTER_CONTROL",
        show_envvar=True,
        help="Where the coordinator is asked: what its own --control says.",
    ),
    # Not MUSTER_CA and so on: those are a participant's, which may run on the same machine.
    click.option(
        "--ca",
        type=click.Path(path_type=Path),
        metavar="FILE",
        envvar="MUSTER_CONTROL_CA",
        show_envvar=True,
        help="Connect with TLS, and trust a server whose certificate is of an authority in this file (PEM).",
    ),
    click.option(
        "--tls",
        is_flag=True,
        envvar="MUSTER_CONTROL_TLS",
        show_envvar=True,
        help="Connect with TLS, and trust whom the system trusts if there is no --ca.",
    ),
    click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        envvar="MUSTER_CONTROL_TOKEN_FILE",
        show_envvar=True,
        help="Holds the token that the coordinator asks for, if it has --control-tokens.",
    ),
]


def reaching(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options by which it reaches a coordinator; it gets an Access."""

    @functools.wraps(command)
    def run(
        control: ControlAddress, ca: Path | None, tls: bool, token_file: Path | None, **options: Any
    ) -> None:
        from coordinator.control.access import Access  # grpc loads here: --help stays fast
        from protos.tls import TLS

        command(Access(control, TLS(ca) if tls or ca is not None else None, token_file), **options)

    for declare in reversed(_ACCESS):
        run = declare(run)
    return run


json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.command(short_help="Show workers, participants, outcomes so far.")
@reaching
@json_option
def status(access: Access, as_json: bool) -> None:
    """Show a running coordinator: workers, participants, outcomes so far."""
    from coordinator.commands.view import as_dict

    with _Asking(access) as stub:
        answer = stub.GetStatus(control_pb2.StatusRequest(), timeout=ANSWER_TIMEOUT)
    if as_json:
        click.echo(json.dumps(as_dict(answer), indent=2))
    else:
        from coordinator.commands import terminal

        terminal.show(terminal.render_status(answer))


class Pairs(ParamType[tuple[str, str]]):
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


@click.command()
@reaching
@click.option("--where", type=Pairs(), multiple=True, help="Only those with this attribute. May be repeated.")
@json_option
def participants(access: Access, where: tuple[tuple[str, str], ...], as_json: bool) -> None:
    """List the participants that are connected now, by id."""
    from coordinator.commands.view import as_dict

    request = control_pb2.ListParticipantsRequest(where=dict(where))
    with _Asking(access) as stub:
        pages = stub.ListParticipants(request, timeout=ANSWER_TIMEOUT)
        found = sorted((each for page in pages for each in page.participants), key=lambda each: each.id)
    if as_json:
        click.echo(json.dumps([as_dict(participant) for participant in found], indent=2))
    elif found:
        from coordinator.commands import terminal

        terminal.show(terminal.render_participants(found))
    else:
        click.echo("no participants" + (" match" if where else " are connected"))


@click.command()
@reaching
def top(access: Access) -> None:
    """Watch a running coordinator live, until Ctrl-C."""
    from coordinator.commands.terminal import LiveView
    from coordinator.commands.view import UPDATE_INTERVAL

    if not sys.stderr.isatty():
        raise click.UsageError("this needs a terminal; use `coordinator status` elsewhere")
    with _Asking(access) as stub, contextlib.suppress(KeyboardInterrupt):
        answer = stub.GetStatus(control_pb2.StatusRequest(), timeout=ANSWER_TIMEOUT)
        with LiveView() as view:
            while True:
                view.update(answer)
                time.sleep(UPDATE_INTERVAL)
                answer = stub.GetStatus(control_pb2.StatusRequest(), timeout=ANSWER_TIMEOUT)


@click.command(short_help="Let running calls finish, then end the coordinator.")
@reaching
@click.option(
    "--grace",
    type=Number(0),
    metavar="SECONDS",
    help="How long running calls may go on.  [default: as `coordinator start --grace` says]",
)
def drain(access: Access, grace: float | None) -> None:
    """Let running calls finish, send participants away, and end the coordinator. Returns when it is gone."""
    _end(access, grace)


@click.command()
@reaching
def stop(access: Access) -> None:
    """End the coordinator at once: running calls are cut off. Returns when it is gone."""
    _end(access, 0.0)


def _end(access: Access, grace: float | None) -> None:
    import grpc

    from coordinator.commands.view import time_to_finish

    with _Asking(access) as stub:
        reply = stub.Drain(control_pb2.DrainRequest(grace_seconds=grace), timeout=ANSWER_TIMEOUT)
        if reply.calls and reply.grace_seconds:
            click.echo(time_to_finish(reply.calls, reply.grace_seconds))
        try:
            while stub.GetStatus(control_pb2.StatusRequest(), timeout=ANSWER_TIMEOUT).pid == reply.pid:
                time.sleep(LOOK_INTERVAL)
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                raise
    click.echo(f"the coordinator at {access} (pid {reply.pid}) has stopped")


@click.command("restart-workers", short_help="Start all workers again, one after the other.")
@reaching
def restart_workers(access: Access) -> None:
    """Drain all workers and start them again, one after the other.

    Running calls finish, and participants move to the other workers. A training that runs meanwhile notices
    nothing. Workers that were given up are tried again.
    """
    import grpc

    with _Asking(access) as stub:
        # So that it is known that there was somebody, should nobody be there later.
        total = len(stub.GetStatus(control_pb2.StatusRequest(), timeout=ANSWER_TIMEOUT).workers)
        done = 0
        try:
            for restarted in stub.RestartWorkers(control_pb2.RestartRequest()):
                done, pid = restarted.done, restarted.pid
                click.echo(f"worker {restarted.worker} is up again (pid {pid}), {done} of {restarted.total}")
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                fail(
                    f"the coordinator at {access} has ended, or can't be reached any more, when {done} of "
                    f"{total} workers were up again"
                )
            raise


COMMANDS = [status, participants, top, drain, stop, restart_workers]


class _Asking:
    """A stub of the control API; what goes wrong ends the command with a sentence."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def __enter__(self) -> Any:
        from coordinator.errors import CredentialsError

        try:
            metadata = self._access.metadata()
            self._channel = self._access.blocking_channel()
        except CredentialsError as error:
            raise click.UsageError(str(error)) from None
        return _Stub(self._channel, metadata)

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        import grpc

        self._channel.close()
        if isinstance(error, grpc.RpcError):
            fail(self._words(error))

    def _words(self, error: Any) -> str:
        from grpc import StatusCode

        access, code = self._access, error.code() if hasattr(error, "code") else None
        if code is StatusCode.UNAVAILABLE and (diagnosis := asyncio.run(access.diagnose())):
            return f"can't connect to the coordinator at {access}: {diagnosis}"
        if code is StatusCode.UNAVAILABLE and (unknown := access.unknown_name(error.details())):
            return f"no coordinator answers at {access}: {unknown}; is that what --control is to be?"
        words = {
            StatusCode.UNAVAILABLE: f"no coordinator answers at {access}{_no_socket(access.address)}; is "
            f"`coordinator start` running?",
            StatusCode.CANCELLED: f"the coordinator at {access} has ended before it could answer",
            StatusCode.UNIMPLEMENTED: f"{access} is not a control address (participants connect there?)",
            StatusCode.DEADLINE_EXCEEDED: (
                f"the coordinator at {access} did not answer within {ANSWER_TIMEOUT:g} s"
            ),
            StatusCode.FAILED_PRECONDITION: f"the coordinator at {access} refuses: {error.details()}",
            StatusCode.UNAUTHENTICATED: (
                f"the coordinator at {access} refuses this command: {error.details()}; show a valid "
                f"token with --token-file (`coordinator tokens issue` makes them)"
            ),
        }
        return words.get(cast(StatusCode, code), f"the coordinator at {access} could not answer: {error}")


class _Stub:
    """The methods of the control API, each with this metadata."""

    def __init__(self, channel: Any, metadata: Metadata) -> None:
        from protos.control_pb2_grpc import ControlStub

        self._stub = ControlStub(channel)
        self._metadata = metadata

    def __getattr__(self, name: str) -> Any:
        return functools.partial(getattr(self._stub, name), metadata=self._metadata)


def _no_socket(address: ControlAddress) -> str:
    """Says it if there is none."""
    try:
        there = not isinstance(address, UnixAddress) or address.path.is_socket()
    except OSError:  # it is somebody else's
        there = True
    return "" if there else ", where there is no socket"


def fail(text: str) -> NoReturn:
    click.echo(f"Error: {text}", err=True)
    sys.exit(1)
