"""The commands that speak to a running coordinator: look at it, drain it, restart its workers.

Exit codes as in cli.py. What goes wrong ends a command with a sentence.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any, NoReturn

import click
from rich.console import Console

from coordinator.settings import DEFAULT_CONTROL
from manager.listen import Address
from manager.options import AddressType, option
from protos import control_pb2

ANSWER_TIMEOUT = 5.0
"""Seconds that a running coordinator gets to answer."""

LOOK_INTERVAL = 0.2
"""Seconds between two looks how the draining goes."""

control_option = option(
    "--control",
    type=AddressType(),
    default=DEFAULT_CONTROL,
    help="Where the coordinator is asked: what its own --control says.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.command()
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


@click.command()
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


@click.command()
@control_option
def top(control: Address) -> None:
    """Watch a running coordinator live, until Ctrl-C."""
    from coordinator.view import UPDATE_INTERVAL, LiveView

    if not sys.stderr.isatty():
        raise click.UsageError("this needs a terminal; use `coordinator status` elsewhere")
    with _Asking(control) as stub, contextlib.suppress(KeyboardInterrupt):
        answer = stub.GetStatus(control_pb2.StatusRequest(), timeout=ANSWER_TIMEOUT)
        with LiveView() as view:
            while True:
                view.update(answer)
                time.sleep(UPDATE_INTERVAL)
                answer = stub.GetStatus(control_pb2.StatusRequest(), timeout=ANSWER_TIMEOUT)


@click.command()
@control_option
@click.option(
    "--grace",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="How long running calls may go on.  [default: as `coordinator start --grace` says]",
)
def drain(control: Address, grace: float | None) -> None:
    """Let running calls finish, send participants away, and end the coordinator. Returns when it is gone."""
    _end(control, grace)


@click.command()
@control_option
def stop(control: Address) -> None:
    """End the coordinator at once: running calls are cut off. Returns when it is gone."""
    _end(control, 0.0)


def _end(control: Address, grace: float | None) -> None:
    import grpc

    with _Asking(control) as stub:
        reply = stub.Drain(control_pb2.DrainRequest(grace_seconds=grace), timeout=ANSWER_TIMEOUT)
        if reply.calls and reply.grace_seconds:
            click.echo(f"{reply.calls} running calls have {reply.grace_seconds:g} s to finish")
        try:
            while stub.GetStatus(control_pb2.StatusRequest(), timeout=ANSWER_TIMEOUT).pid == reply.pid:
                time.sleep(LOOK_INTERVAL)
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                raise
    click.echo(f"the coordinator at {control} (pid {reply.pid}) has stopped")


@click.command("restart-workers")
@control_option
def restart_workers(control: Address) -> None:
    """Drain all workers and start them again, one after the other.

    Running calls finish, and participants move to the other workers. A training that runs meanwhile notices
    nothing. Workers that were given up are tried again.
    """
    import grpc

    with _Asking(control) as stub:
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
                    f"the coordinator at {control} has ended, or can't be reached any more, when {done} of "
                    f"{total} workers were up again"
                )
            raise


COMMANDS = [status, participants, top, drain, stop, restart_workers]


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
                fail(f"no coordinator answers at {self._control}; is `coordinator start` running?")
            if code is grpc.StatusCode.CANCELLED:
                fail(f"the coordinator at {self._control} has ended before it could answer")
            if code is grpc.StatusCode.UNIMPLEMENTED:
                fail(f"{self._control} is not a control address (participants connect there?)")
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                fail(f"the coordinator at {self._control} did not answer within {ANSWER_TIMEOUT:g} s")
            if code is grpc.StatusCode.FAILED_PRECONDITION:
                fail(f"the coordinator at {self._control} refuses: {error.details()}")
            fail(f"the coordinator at {self._control} could not answer: {error}")


def fail(text: str) -> NoReturn:
    click.echo(f"Error: {text}", err=True)
    sys.exit(1)
