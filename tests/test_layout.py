"""The layout that ARCHITECTURE.md describes: which package may import which, and who stays away from I/O."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ["protos", "participant_sdk", "manager", "coordinator"]

# protos ← participant_sdk, and protos ← manager ← coordinator.
MAY_IMPORT = {
    "protos": set(),
    "participant_sdk": {"protos"},
    "manager": {"protos"},
    "coordinator": {"protos", "manager"},
}

SANS_IO = [
    "protos/envelope.py",
    "protos/chunks.py",
    "protos/frames.py",
    "protos/parsing.py",
    "protos/sliced.py",
    "protos/walk.py",
    "manager/core/pool.py",
    "manager/core/call.py",
    "manager/core/assignments.py",
    "manager/core/calls.py",
    "manager/core/deadlines.py",
    "manager/core/roster.py",
    "manager/reducing/shares.py",
    "manager/reducing/batch.py",
    "manager/reducing/contributions.py",
    "manager/reducing/schema.py",
    "manager/reducing/elementwise.py",
    "manager/core/members.py",
    "manager/serving/session.py",
    "manager/serving/admission.py",
    "manager/serving/crowds.py",
    "manager/serving/connections.py",
    "manager/serving/refused.py",
    "manager/access/identity.py",
    "manager/access/tokens.py",
    "manager/access/peer_certificate.py",
    "manager/link/sequence.py",
    "manager/link/end.py",
    "manager/link/confirmations.py",
    "manager/liveness.py",
    "manager/link/uplink.py",
    "manager/link/reports.py",
    "manager/api/outcome.py",
    "coordinator/workers/downlink.py",
    "coordinator/workers/restarts.py",
    "coordinator/workers/balance.py",
    "coordinator/workers/patience.py",
    "coordinator/workers/orders.py",
    "participant_sdk/lifecycle.py",
    "participant_sdk/backoff.py",
]

DOES_IO = {"asyncio", "grpc", "os", "random", "signal", "socket", "subprocess", "threading", "time", "zmq"}
"""What a module that only decides may not import; but pool.py may be handed a random.Random."""


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield node.module


def sources(package: str) -> list[Path]:
    return [path for path in sorted((ROOT / package).glob("**/*.py")) if "_pb2" not in path.name]


def faces(package: str) -> list[Path]:
    return [path for path in sources(package) if path.name == "__init__.py"]


def table(folder: str) -> dict[str, bool]:
    """What the docstring of a folder lists, and whether it is marked as sans-IO."""
    _, lines, _ = re.split(
        r"^=+  =+$", (ROOT / folder / "__init__.py").read_text(encoding="utf-8"), flags=re.M
    )
    found = re.findall(r"^(\S+) +(★)?", lines, flags=re.M)
    return {name: bool(star) for name, star in found}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_between_the_packages_run_one_way(package: str) -> None:
    forbidden = set(PACKAGES) - MAY_IMPORT[package] - {package}
    breaches = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources(package)
        for module in imports(path)
        if module.partition(".")[0] in forbidden | {"tests", "benchmarks", "examples"}
    ]
    assert not breaches


@pytest.mark.parametrize("path", SANS_IO)
def test_what_decides_does_no_input_or_output(path: str) -> None:
    allowed = {"random"} if path == "manager/core/pool.py" else set()
    found = {module.partition(".")[0] for module in imports(ROOT / path)}
    assert not found & (DOES_IO - allowed)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_says_at_its_top_what_it_is(package: str) -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sources(package)
        if ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None
    ]
    assert not silent


TABLED = [
    path.parent.relative_to(ROOT).as_posix()
    for package in ("manager", "coordinator")
    for path in faces(package)
]


@pytest.mark.parametrize("folder", TABLED)
def test_the_table_of_a_folder_is_complete(folder: str) -> None:
    here = (ROOT / folder).iterdir()
    there = {
        path.name if path.is_file() else f"{path.name}/" for path in here if not path.name.startswith("__")
    }
    assert set(table(folder)) == there - {"py.typed"}
    decides = {name for name, star in table(folder).items() if star}
    assert decides == {path.rpartition("/")[2] for path in SANS_IO if path.rpartition("/")[0] == folder}


@pytest.mark.parametrize("package", ["manager", "coordinator"])
def test_of_a_package_each_file_and_folder_imports_only_those_above_it_in_the_table(package: str) -> None:
    entries = [name.removesuffix("/").removesuffix(".py") for name in table(package)]
    breaches = [
        f"{path.relative_to(ROOT)} imports {module}"
        for number, entry in enumerate(entries)
        for path in [ROOT / package / f"{entry}.py", *(ROOT / package / entry).glob("*.py")]
        if path.exists()
        for module in imports(path)
        if module.startswith(f"{package}.") and module.split(".")[1] not in entries[: number + 1]
    ]
    assert not breaches


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_outgrows_a_screen_or_ten(package: str) -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources(package)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long


@pytest.mark.parametrize("module", ["manager.worker", "coordinator.running"])
def test_what_serves_starts_without_numpy(module: str) -> None:
    """It takes a fifth of a start, and 11 MiB; only workers that reduce need it, from then on."""
    code = f"import sys, {module}; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
