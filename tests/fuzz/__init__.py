"""Generated input for all that reads what others send. ``python -m tests.fuzz --help`` runs it for long.

===============  ==============================================================================
wire.py          messages taken apart into fields, changed, and put together again
corpus.py        the valid messages that it begins with
targets.py       what reads them, and what may come of it
strangers.py     peers that send such things to live sockets
loop.py          the loop: so many frames, from one seed, with bounds on time and memory
live.py          strangers against a running coordinator whose participants are at work
===============  ==============================================================================
"""
