"""``python -m coordinator``: the same as the ``coordinator`` command."""

from coordinator.commands.cli import main

main(prog_name="coordinator")
