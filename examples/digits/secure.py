"""Credentials for the cluster of Procfile.secure: five hospitals, and a training script, that are known.

Decides who there is and where each finds what it needs. What is there already is kept; whoever deletes the
folder gets new ones. How they are made is the business of `coordinator certs` and `coordinator tokens issue`.

    python -m examples.digits.secure
"""

from __future__ import annotations

from pathlib import Path

import click

from coordinator import MusterError
from coordinator.commands.certs import make
from coordinator.commands.token_file import read
from coordinator.commands.tokens import issue
from manager.access.tokens import TokensError, parse

HOSPITALS = [f"hospital-{number}" for number in range(1, 6)]
"""Ids of the participants: what their certificates and tokens name."""

SCRIPT = "training"
"""Who the training script is at the control address."""


@click.command()
@click.option(
    "--dir",
    "path",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent / "out" / "secure",
    envvar="DIGITS_CREDENTIALS",
    show_envvar=True,
    show_default="out/secure, beside this script",
    help="Where they are kept; nobody else may be able to enter it.",
)
def main(path: Path) -> None:
    """Make what Procfile.secure needs: certificates, keys and tokens, in a folder that only you can enter.

    What is there already is kept, but for tokens that have been revoked: they are replaced.
    """
    try:
        certs = make(path, participants=HOSPITALS)
        for line in certs.made:
            click.echo(f"made {line}")
        for name in HOSPITALS:
            make_token(name, path / "tokens.txt", certs.participant(name).key.with_suffix(".token"))
        make_token(SCRIPT, path / "scripts.txt", path / f"{SCRIPT}.token")
    except (MusterError, TokensError) as error:
        raise click.ClickException(f"{error}; or delete {path} to begin anew") from None
    click.echo(f"certificates and tokens are in {path}")


def make_token(name: str, file: Path, out: Path) -> None:
    """Writes a token to ``out``, and its hash to ``file``, unless there is one that is valid."""
    if out.exists():
        if file.exists() and parse(read(file)).find(read(out).strip()) is not None:
            return
        out.unlink()  # it has been revoked
    issue.main([name, "--file", str(file), "--out", str(out)], standalone_mode=False)


if __name__ == "__main__":
    main()
