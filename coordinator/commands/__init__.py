"""The ``coordinator`` command.

================  =============================================================================
cli.py            ``coordinator start``
foreground.py     a coordinator in the foreground of a terminal
remote.py         the commands that speak to a running coordinator
tokens.py         ``coordinator tokens``
token_file.py     the file that it changes
certs.py          ``coordinator certs``: which certificates and keys there are
authority.py      what is in a certificate
view.py           what is shown of a coordinator: log lines, JSON
terminal.py       tables, and a live display
================  =============================================================================
"""
