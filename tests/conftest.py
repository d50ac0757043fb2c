"""How Hypothesis searches: without a deadline (a busy machine is no bug), and the same every time in CI."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("muster", deadline=None, max_examples=50)
settings.register_profile("muster-ci", parent=settings.get_profile("muster"), derandomize=True)
settings.load_profile("muster-ci" if os.environ.get("CI") else "muster")
