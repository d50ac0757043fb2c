"""The chaos run (tests/chaos) with one seed. For more of it: ``python -m tests.chaos --minutes 10``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 35
"""Of faults; starting, settling and ending take about 20 more."""


SLACK = 15
"""Seconds by which calls may be late: other tests run beside it. When it runs alone it is stricter."""


@pytest.mark.long(55)
@pytest.mark.timeout(300)
def test_whatever_is_killed_every_call_ends_and_nobody_is_lost_or_counted_twice(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    arguments = [
        "--seed=7",
        f"--seconds={SECONDS}",
        f"--slack={SLACK}",
        f"--report={report}",
        f"--keep={tmp_path / 'logs'}",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads(report.read_text(encoding="utf-8"))
    assert told["violations"] == []
    assert sum(told["faults"].values()) >= 15, "it was too peaceful"
    assert set(told["calls"]) == {"run", "each", "reduce", "stream", "single", "large"}
    assert told["leases"] > 10
    assert told["outcomes"]["result"] > 500
    assert told["outcomes"]["folded"] > 200
