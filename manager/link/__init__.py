"""A worker's side of the link to its coordinator; what both sides share is here, too.

================  =============================================================================
uplink.py ★       the manager's side of the link
end.py ★          how one end of a link loses nothing
sequence.py ★     what of a link has to be sent again
confirmations.py ★  what may be done once the coordinator has heard of something
reports.py ★      what a worker tells the coordinator, batched
orders.py         carries out what the coordinator orders
sockets.py        ZeroMQ sockets on an event loop
keys.py           the keys of a link over TCP
================  =============================================================================
"""
