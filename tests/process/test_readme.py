"""The README's first example works as it is written, but for the addresses."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.process.running import Process, start_coordinator
from tests.support import PATIENCE

README = Path(__file__).parent.parent.parent / "README.md"


def test_the_two_scripts_of_the_readme_fit_a_line(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    with ExitStack() as stack, start_coordinator(tmp_path / "log", "--workers=2") as coordinator:
        for name in ("hospital.py", "train.py"):
            (source,) = (block for block in blocks if block.startswith(f"# {name}"))
            source = source.replace("127.0.0.1:50051", coordinator.listen)
            (tmp_path / name).write_text(source.replace("127.0.0.1:50050", coordinator.control))
        for id in ("hospital-7", "hospital-8"):
            script = [sys.executable, str(tmp_path / "hospital.py")]
            stack.callback(Process(script, tmp_path / f"{id}.log", {"HOSPITAL": id}).end)
        done = subprocess.run(
            [sys.executable, str(tmp_path / "train.py")],
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [str(number) for number in range(20)]
    assert all("2 folded, 0 failures" in line for line in lines[:-1])
    assert [float(each) for each in re.findall(r"\d\.\d*", lines[-1])] == pytest.approx([3, 1], abs=0.05)
