"""What callers hold in their hands: participants, cohorts, outcomes. All interfaces share it.

================  =============================================================================
participants.py   get_participants and lease
cohort.py         the participants that a caller got
proxy.py          one participant
outcome.py ★      what became of a call
answers.py        its results one by one, as they arrive
arguments.py      what callers may pass
================  =============================================================================
"""
