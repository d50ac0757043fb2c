"""The cluster, as a script sees it that was started at the same time.

Decides which participants are ours, how a script is told where the coordinator is and whether it needs
credentials there, and how long it waits for the coordinator and for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

import coordinator
from coordinator import TLS, Cohort, Connection, CoordinatorGone, NotEnoughParticipants, ParticipantProxy
from examples.digits import data
from examples.digits.show import Display

Command = TypeVar("Command", bound=Callable[..., Any])

WHERE = {"task": "digits"}
"""Other participants may be connected to the same coordinator. These are ours."""

START_TIMEOUT = 120.0
"""Seconds to wait for the coordinator, and then for the participants: all may be started at once."""


class Trainer(ParticipantProxy):
    """A participant, as the training script sees it."""

    @property
    def examples(self) -> int:
        """How many it holds, as it said when it connected."""
        return int(self.attributes["examples"])


def options(command: Command) -> Command:
    """The options of a script that trains: where the coordinator is, how many take part, for how long."""
    for option in reversed(
        [
            click.option(
                "--control",
                metavar="HOST:PORT|unix:PATH",
                default="127.0.0.1:50050",
                envvar="MUSTER_CONTROL",
                help="The coordinator's control address.",
            ),
            click.option(
                "--ca",
                type=click.Path(path_type=Path),
                metavar="FILE",
                envvar="MUSTER_CONTROL_CA",
                help="Connect with TLS, and trust a coordinator whose certificate is of a CA in this file.",
            ),
            click.option(
                "--token-file",
                type=click.Path(path_type=Path),
                metavar="FILE",
                envvar="MUSTER_CONTROL_TOKEN_FILE",
                help="Holds the token that the coordinator asks for, if it has --control-tokens.",
            ),
            click.option("--rounds", type=click.IntRange(1), default=20, help="How many rounds of training."),
            click.option(
                "--participants",
                type=click.IntRange(1),
                default=data.SHARDS,
                help="How many to wait for before round 1.",
            ),
        ]
    ):
        command = option(command)
    return command


def attach(address: str, ca: Path | None, token_file: Path | None, display: Display) -> Connection[Trainer]:
    """Attaches to the coordinator, which may still be on its way up. Paths are as the options say."""
    tls = None if ca is None else TLS(ca)
    deadline = time.monotonic() + START_TIMEOUT
    display.begin("coordinator", total=1)
    display.say(f"attaching to the coordinator at {address}")
    while True:
        try:
            return coordinator.connect(address, Trainer, tls=tls, token=token_file)
        except CoordinatorGone:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def wait_for(count: int, connection: Connection[Trainer], display: Display) -> Cohort[Trainer]:
    """Waits until that many participants are there, and shows how many are. Returns all that are."""
    deadline = time.monotonic() + START_TIMEOUT
    display.begin("participants", total=count)
    there = -1
    while True:
        try:
            cohort = connection.get_participants(count, where=WHERE, timeout=0.5)
            break
        except NotEnoughParticipants as shortage:
            if time.monotonic() > deadline:
                raise click.ClickException(f"only {shortage.matching} of {count} participants came") from None
            if shortage.matching != there:
                there = shortage.matching
                display.advance(there, f"{there} of {count} participants are here")
    examples = sum(participant.examples for participant in cohort)
    workers = len({participant.worker for participant in cohort})
    display.advance(
        count, f"{len(cohort)} participants are here, on {workers} workers, with {examples} examples"
    )
    return cohort
