"""What must be nowhere in the product: code or objects made from data, shells, undeclared dependencies."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version

import pytest

from tests.test_layout import PACKAGES, ROOT, imports, sources

HAZARDOUS_MODULES = {
    "pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "code", "codeop",
}  # fmt: skip
HAZARDOUS_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput",
    "subprocess.getstatusoutput", "asyncio.create_subprocess_shell",
}  # fmt: skip

MAY_IMPORT_BY_NAME = {
    "manager/reducing/reducers.py",
    "participant_sdk/app.py",
    "manager/__init__.py",
    "coordinator/__init__.py",
}
"""Who may import a module whose name isn't in the code: reducers of the operator's list, the app of the
person who starts a participant, and what the packages themselves import late."""

DISTRIBUTIONS = {
    "google": "protobuf",
    "grpc": "grpcio",
    "zmq": "pyzmq",
    "typing_extensions": "typing-extensions",
}
"""What has another name in a package index than in an import."""


def dotted(node: ast.expr) -> str:
    match node:
        case ast.Name(name):
            return name
        case ast.Attribute(value, attribute):
            return f"{dotted(value)}.{attribute}"
    return ""


def hazards(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in HAZARDOUS_CALLS:
            yield f"line {node.lineno}: {name}"
        for keyword in node.keywords:
            if keyword.arg in ("shell", "allow_pickle") and not (
                isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            ):
                yield f"line {node.lineno}: {keyword.arg}="


@pytest.mark.parametrize("package", [*PACKAGES, "examples"])
def test_no_code_is_made_from_data_and_no_shell_is_run(package: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {what}"
        for path in sources(package)
        for what in [
            *hazards(ast.parse(path.read_text(encoding="utf-8"))),
            *(module for module in imports(path) if module.partition(".")[0] in HAZARDOUS_MODULES),
        ]
    ]
    assert not found


def test_the_search_for_hazards_finds_them() -> None:
    lines = [
        "eval(x)",
        "os.system(x)",
        "subprocess.run(x, shell=True)",
        "np.load(x, allow_pickle=y)",
        "re.compile(x)",
    ]
    code = "\n".join(lines)
    assert [line.partition(":")[0] for line in hazards(ast.parse(code))] == [
        f"line {n}" for n in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_are_imported_by_name_only_where_somebody_chose_them(package: str) -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in sources(package)
        if re.search(r"\bimport_module\b", path.read_text(encoding="utf-8"))
    }
    assert found <= MAY_IMPORT_BY_NAME


def declared() -> dict[str, str]:
    """The lower bound of each dependency, by name; empty if it has none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = {}
    for requirement in project["dependencies"]:
        match = re.match(r"([A-Za-z0-9-]+)(?:\[[^]]*\])?(?:>=([0-9.]+))?", requirement)
        assert match is not None, requirement
        bounds[match[1].lower()] = match[2] or ""
    return bounds


def test_dependencies_have_lower_bounds_and_what_is_installed_obeys_them() -> None:
    for name, bound in declared().items():
        assert bound, f"{name} has no lower bound"
        if name == "uvloop" and sys.platform == "win32":
            continue
        assert numbers(version(name)) >= numbers(bound), name


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def test_only_declared_dependencies_are_imported() -> None:
    standard = set(sys.stdlib_module_names) | set(PACKAGES) | {"__future__"}
    third = {
        module.partition(".")[0]
        for package in PACKAGES
        for path in sources(package)
        for module in imports(path)
    } - standard
    assert {DISTRIBUTIONS.get(module, module) for module in third} <= set(declared())
