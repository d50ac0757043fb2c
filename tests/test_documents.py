"""What the documents say is shown by a test is: files and tests that they name are there."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.test_layout import ROOT

DOCUMENTS = ["README.md", "ARCHITECTURE.md", "RELIABILITY.md", "SECURITY.md", "protos/PROTOCOL.md"]


@cache
def all_tests() -> dict[str, set[str]]:
    """The names of the tests, by the name of their file without its folders."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "tests").glob("**/test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        }
        found.setdefault(path.name, set()).update(names)
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_tests_that_a_document_names_are_there(document: str) -> None:
    text, there = (ROOT / document).read_text(encoding="utf-8"), all_tests()
    named = re.findall(r"(test_\w+\.py)(?:::(test_\w+))?", text)
    missing = [
        "::".join(filter(None, pair))
        for pair in named
        if pair[0] not in there or (pair[1] and pair[1] not in there[pair[0]])
    ]
    assert not missing


def test_each_threat_has_a_test() -> None:
    """Each row of the table under "What is defended" ends with one."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    table = text.partition("## What is defended")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 20
    assert not [row for row in rows if not re.search(r"`test_\w+\.py::test_\w+` \|$", row)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_files_that_a_document_links_to_are_there(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert not [link for link in links if not (path.parent / link).exists()]
