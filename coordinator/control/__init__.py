"""How training scripts reach a coordinator: both ends of the control API.

================  =============================================================================
server.py         the server, in the coordinator
gate.py           who may use it
attachment.py     one attached script
access.py         what a script or a command needs to reach it
client.py         the other end, in an attached script
stream.py         the stream that it has
pending.py        what a script waits for
writer.py         batches for the stream between the two
passing.py        how a payload crosses it: as bytes or as a descriptor
================  =============================================================================
"""
