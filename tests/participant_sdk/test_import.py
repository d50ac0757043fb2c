"""Importing the SDK costs a device no more than it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, sys, time
import google.protobuf.message, grpc.aio, numpy
before = time.process_time()
import participant_sdk
seconds = time.process_time() - before
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules)}))
"""

UNWANTED = {"zmq", "click", "rich", "structlog", "uvloop", "manager", "coordinator", "torch", "ml_dtypes"}


@pytest.mark.timed
def test_it_imports_little_and_fast() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    report = json.loads(done.stdout)
    assert not UNWANTED & {name.partition(".")[0] for name in report["modules"]}
    assert report["seconds"] < 0.5
