"""The version that a hello states."""

from __future__ import annotations

from functools import cache


@cache
def sdk_version() -> str:
    """Such as "muster-python/0.1.0"."""
    from importlib import metadata  # not cheap, and needed once

    try:
        return f"muster-python/{metadata.version('muster')}"
    except metadata.PackageNotFoundError:
        return "muster-python/unknown"
