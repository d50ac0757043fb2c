"""The command ``participant``: runs the participants of a Python module.

Decides the options, their words, and the exit codes: 0 after a clean stop, 1 if the coordinator refused a
participant, 2 for a mistake in the command or a file that it names. All else is participant.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from participant_sdk.address import check_address
from participant_sdk.app import AppError, AppFailedError, load_app, own_traceback
from participant_sdk.base import BaseParticipant
from participant_sdk.errors import AddressError, CredentialsError
from participant_sdk.logs import set_up_logging
from participant_sdk.participant import run_all
from protos.tls import TLS
from protos.version import VERSION

_FILE = click.Path(path_type=Path)


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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="participant")
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
    "--ca",
    type=_FILE,
    metavar="FILE",
    show_envvar=True,
    help="Connect with TLS, and trust a server whose certificate is of a CA in this file (PEM).",
)
@click.option(
    "--tls",
    is_flag=True,
    show_envvar=True,
    help="Connect with TLS, and trust whom the system trusts if there is no --ca.",
)
@click.option(
    "--cert",
    type=_FILE,
    metavar="FILE",
    show_envvar=True,
    help="This participant's certificate, with its chain (PEM), if the server wants one. Needs --key.",
)
@click.option(
    "--key",
    type=_FILE,
    metavar="FILE",
    show_envvar=True,
    help="The private key to --cert (PEM), without a passphrase.",
)
@click.option(
    "--token-file",
    type=_FILE,
    metavar="FILE",
    show_envvar=True,
    help="Holds the token that the coordinator knows this participant by. It is only sent over TLS, or to "
    "this machine.",
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
    ca: Path | None,
    tls: bool,
    cert: Path | None,
    key: Path | None,
    token_file: Path | None,
    log_level: str,
    log_format: str,
) -> None:
    """Connect and carry out instructions until stopped.

    Reconnects for ever when the coordinator is lost, waiting longer each time (30 seconds at most). SIGTERM
    and Ctrl-C leave cleanly: the coordinator is told at once, and the exit code is 0. A handler at work is
    asked to stop and waited for, but its answer is not sent any more; a second signal doesn't wait. If the
    coordinator refuses the participant the exit code is 1.

    Certificates and the token are read anew for each connection: files may be replaced while it runs.

    \b
    Example:
      participant start --app my_app:participant --connect example.org:50051 --ca ca.pem --token-file token
    """
    set_up_logging(log_level, log_format)
    try:
        participants = load_app(app)
    except AppError as error:
        raise click.BadParameter(str(error), param_hint="'--app'") from None
    except AppFailedError as failed:
        click.echo(own_traceback(failed.error), err=True, nl=False)
        raise click.ClickException(f"--app {failed}") from None
    _rename(participants, participant_id, attributes)
    with_tls = TLS(ca, cert, key) if tls or ca or cert or key else None
    outcomes = run_all(participants, connect, tls=with_tls, token=token_file)
    errors = [error for error in outcomes if error is not None]
    if errors:
        count = f"{len(errors)} of {len(participants)} participants failed; " if len(participants) > 1 else ""
        kind = click.UsageError if isinstance(errors[0], CredentialsError) else click.ClickException
        raise kind(f"{count}{errors[0]}")


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
