"""The participants' streams: gRPC's server, and who may come, stay and go.

================  =============================================================================
endpoint.py       the gRPC server
gate.py           lets in who has credentials
servicer.py       reads the streams
session.py ★      what each message means in the life of one stream
incoming.py       what participants say, read as far as a manager must
stream.py         writes to one of them
folding.py        folds results as they arrive
verdicts.py       how this side ends a stream
refusals.py       ends the streams of those who may not stay
overdue.py        which streams have been waited for too long
turns.py          how much that takes long is begun in one turn of the event loop
admission.py ★    who may join now, and when the others are told to come back
crowds.py ★       how many streams one address may have
connections.py ★  which connections without a stream are closed
open_sockets.py   the connections to a port of this process, seen and closed
closing.py        looks at them again and again, and closes some
refused.py ★      why somebody was turned away, cut off or closed, and how many were
================  =============================================================================
"""
