"""``python -m manager``: the same as the ``manager`` command."""

from manager.cli import main

main(prog_name="manager")
