"""Decides who gets which participants, and how every call ends.

The same in a single process and in a coordinator.

================  =============================================================================
members.py ★      what is known of one pooled participant
roster.py ★       the members of a cohort, and what is worked out of them once
pool.py ★         who gets which participants, and when
call.py ★         one call, and how it stands
assignments.py ★  what each participant works on, and what it gets next
calls.py ★        how each call ends for each of its participants
deadlines.py ★    which deadlines have come
dispatcher.py     carries out what pool and calls decide
transport.py      what it needs of whoever holds the streams
backend.py        what callers need of it
================  =============================================================================
"""
