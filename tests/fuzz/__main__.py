"""``python -m tests.fuzz``: fuzzes for as long as you like."""

from __future__ import annotations

import logging
import secrets
import sys

import click

from tests.fuzz import loop


@click.command()
@click.option("--frames", default=1_000_000, show_default=True, help="Frames to feed to the decoders.")
@click.option("--seed", type=int, help="Repeats the frames of a former run. [default: another each time]")
@click.option("--live", is_flag=True, help="Send garbage to the sockets of a running cluster, too.")
@click.option("--peers", default=2000, show_default=True, help="Strangers that come to them.")
def main(frames: int, seed: int | None, *, live: bool, peers: int) -> None:
    """Feeds generated frames to all that reads what others send; fails at the first that misbehaves."""
    logging.disable(logging.CRITICAL)  # of refusals there are as many as frames
    seed = secrets.randbits(24) if seed is None else seed
    click.echo(f"seed {seed}")
    try:
        if frames:
            click.echo(loop.run(frames, seed, lambda report: click.echo(report)))
        if live:
            from tests.fuzz.live import disturb_a_cluster

            click.echo(disturb_a_cluster(peers, seed))
    except AssertionError as error:
        click.echo(f"FOUND: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
