"""The worker processes, and the links to them.

================  =============================================================================
supervisor.py     the processes, kept running
slot.py           what is known of one of them
process.py        one of them
restarts.py ★     what happens when one ends
patience.py ★     how long is waited for them to end
rolling.py        those that live, restarted one after the other
run_dir.py        what outlives a coordinator that is killed
links.py          the links to all of them
downlink.py ★     the coordinator's side of the link to one
router.py         the socket that they come in by
orders.py ★       what the coordinator tells one, batched
transport.py      what the dispatcher wants, on its way to them
draining.py       which of them are told to drain, and when
balance.py ★      how many participants are moved, so that all have about the same
================  =============================================================================
"""
