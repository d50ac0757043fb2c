"""The command ``participant``: runs the participants of a Python module.

Decides the options, their words, and the exit codes: 0 after a clean stop, 1 if the coordinator refused a
participant, 2 for a mistake in the command. All else is participant.py's.
"""

from __future__ import annotations

import os

# gRPC's C core writes its own words to stderr unless told not to, and reads this only once.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from collections.abc import Sequence

import click

from participant_sdk.address import check_address
from participant_sdk.app import AppError, load_app
from participant_sdk.base import BaseParticipant
from participant_sdk.errors import AddressError
from participant_sdk.logs import set_up_logging
from participant_sdk.participant import run_all


def _address(_context: click.Context, _option: click.Parameter, value: str) -> str:
    try:
        return check_address(value)
    except AddressError as error:
        raise click.BadParameter(str(error)) from None


def _key_values(_context: click.Context, _option: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    for value in values:
        if value.find("=") < 1:
            raise click.BadParameter(f"{value!r} isn't of the form key=value")
    return dict(value.split("=", 1) for value in values)


@click.group()
@click.version_option(package_name="muster", prog_name="participant")
def main() -> None:
    """Take part in federated learning.

    A participant connects to a Muster coordinator, waits for instructions and carries them out on this
    machine: its data never leaves it, only the results do.
    """


# The prefix is given here and not to the group, which would make it MUSTER_START_CONNECT.
@main.command(context_settings={"auto_envvar_prefix": "MUSTER"})
@click.option(
    "--app",
    required=True,
    metavar="MODULE:OBJECT",
    show_envvar=True,
    help="What to run: a participant_sdk.Participant, a list of them, or a function that returns either. "
    "The module is also looked for in the working directory.",
)
@click.option(
    "--connect",
    required=True,
    metavar="HOST:PORT",
    callback=_address,
    show_envvar=True,
    help="The address of the coordinator's participant managers.",
)
@click.option(
    "--id",
    "participant_id",
    default="",
    metavar="NAME",
    envvar="MUSTER_ID",
    show_envvar=True,
    help="A stable name for this participant, in place of the app's. Without any, the coordinator makes "
    "one up.",
)
@click.option(
    "--attribute",
    "attributes",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_key_values,
    envvar="MUSTER_ATTRIBUTE",
    show_envvar=True,
    help="What the participant may be selected by, such as region=eu; added to those of the app. May be "
    "given several times (in the variable: separated by spaces).",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="info",
    show_default=True,
    show_envvar=True,
    help="The least important messages to show.",
)
@click.option(
    "--log-format",
    type=click.Choice(["console", "json"]),
    default="console",
    show_default=True,
    show_envvar=True,
    help="Lines for people, or a JSON object per line.",
)
def start(
    app: str,
    connect: str,
    participant_id: str,
    attributes: dict[str, str],
    log_level: str,
    log_format: str,
) -> None:
    """Connect and carry out instructions until stopped.

    Reconnects for ever when the coordinator is lost, waiting longer each time (30 seconds at most). SIGTERM
    and Ctrl-C leave cleanly: the coordinator is told, a handler at work is waited for, and the exit code is
    0; a second one doesn't wait. If the coordinator refuses the participant the exit code is 1.

    \b
    Example:
      participant start --app my_app:participant --connect example.org:50051 --attribute region=eu
    """
    set_up_logging(log_level, log_format)
    try:
        participants = load_app(app)
    except AppError as error:
        raise click.BadParameter(str(error), param_hint="'--app'") from None
    _rename(participants, participant_id, attributes)
    errors = [error for error in run_all(participants, connect) if error is not None]
    if errors:
        count = f"{len(errors)} of {len(participants)} participants failed; " if len(participants) > 1 else ""
        raise click.ClickException(f"{count}{errors[0]}")


def _rename(participants: Sequence[BaseParticipant], participant_id: str, attributes: dict[str, str]) -> None:
    if participant_id and len(participants) > 1:
        raise click.BadParameter(
            f"one name can't do for the {len(participants)} participants of the app", param_hint="'--id'"
        )
    for participant in participants:
        participant.participant_id = participant_id or participant.participant_id
        participant.attributes |= attributes


if __name__ == "__main__":
    main()
