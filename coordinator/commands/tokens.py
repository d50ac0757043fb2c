"""``coordinator tokens``: issues and revokes the tokens of participants.

It works on the file alone; a coordinator that runs with ``--tokens`` sees the change within seconds. Exit
codes as in cli.py.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import NoReturn

import click

from coordinator.commands import token_file
from coordinator.commands.remote import fail, json_option
from coordinator.commands.token_file import TokenFileError
from coordinator.commands.view import counted
from manager.access.tokens import RANDOM_BYTES, TokensError, added, check_name, make_token, parse, removed

file_option = click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="MUSTER_TOKENS",
    show_envvar=True,
    required=True,
    help="The file that `coordinator start --tokens` reads.",
)


@click.group(short_help="Issue and revoke the tokens of participants.")
def tokens() -> None:
    """Issue and revoke the tokens by which participants are known.

    The file has a line per token: a name, which becomes the participant's id, and a hash. The token itself
    is shown once and kept nowhere.
    """


@tokens.command()
@click.argument("name")
@file_option
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the token to this new file, which only you can read, rather than to the terminal.",
)
def issue(name: str, file: Path, out: Path | None) -> None:
    """Make a token for NAME. Those that it has already stay valid until they are revoked."""
    try:
        check_name(name)
    except TokensError as error:
        raise click.UsageError(str(error)) from None
    token = make_token(secrets.token_bytes(RANDOM_BYTES))

    def add(text: str) -> tuple[str, int]:
        after = added(text, name, token)
        return after, parse(after).count()[name]

    try:
        if out is not None:
            token_file.write_new(out, token + "\n")
        try:
            number = token_file.change(file, add, create=True)
        except BaseException:
            if out is not None:
                out.unlink()
            raise
    except (TokensError, TokenFileError) as error:
        _fail(file, error)
    if out is None:
        click.echo(token)
    more = f"; it has {number} now" if number > 1 else ""
    click.echo(f"a token of {name} is in {out or 'the line above'} and nowhere else{more}", err=True)


@tokens.command()
@click.argument("name")
@file_option
@click.option("--keep-newest", is_flag=True, help="All but the one that was issued last.")
def revoke(name: str, file: Path, keep_newest: bool) -> None:
    """Make the tokens of NAME worth nothing. Its streams end within seconds."""

    def remove(text: str) -> tuple[str, tuple[int, int]]:
        after, gone = removed(text, name, keep_last=keep_newest)
        return after, (gone, parse(text).count()[name])

    try:
        gone, there = token_file.change(file, remove)
    except (TokensError, TokenFileError) as error:
        _fail(file, error)
    if not there:
        fail(f"{file} has no token of {name}; `coordinator tokens list` shows whose there are")
    click.echo(f"{gone} of {counted(there, 'token')} of {name} {'is' if gone == 1 else 'are'} revoked")


@tokens.command("list")
@file_option
@json_option
def list_(file: Path, as_json: bool) -> None:
    """Show who has how many tokens."""
    try:
        count = parse(token_file.read(file)).count()
    except (TokensError, TokenFileError) as error:
        _fail(file, error)
    if as_json:
        click.echo(json.dumps([{"name": name, "tokens": number} for name, number in count.items()], indent=2))
        return
    for name, number in count.items():
        click.echo(name if number == 1 else f"{name} ({number} tokens)")
    if not count:
        click.echo(f"{file} has no tokens")


def _fail(file: Path, error: TokensError | TokenFileError) -> NoReturn:
    fail(f"{file}: {error}" if isinstance(error, TokensError) else str(error))
