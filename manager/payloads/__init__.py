"""Where large payloads are.

================  =============================================================================
blobs.py          payloads that processes share
memory.py         shared memory that is used again
spool.py          room for large answers while they arrive
================  =============================================================================
"""
