"""The chaos run: a cluster under continuous calls, while everything in it is killed, frozen and cut off.

::

    python -m tests.chaos --seed 7 --seconds 60

================  ===================================================================================
__main__.py       the command
run.py            one run from the start of the cluster to the verdict
schedule.py ★     which fault comes when, from a seed
inject.py         carries faults out, and measures how long they take to be known and to be over
cluster.py        the processes
proxy.py          stands between participants and workers; cuts and freezes connections
observer.py       what the coordinator says of itself while all this goes on
participants.py   many participants in one process (a program)
script.py         a training script that makes random calls (a program)
journal.py        what both of them write down; it survives kill -9
history.py        all journals of a run, read back
audit.py ★        what in that history must not be
report.py         what a person gets to see
================  ===================================================================================

Files marked ★ are pure.
"""
