"""``coordinator tokens``: what it writes, what it says, and that it does both safely."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from coordinator.commands import cli, token_file
from coordinator.commands.token_file import TokenFileError
from manager.access.tokens import digest, parse


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def tokens(*arguments: str | Path, **variables: str) -> Result:
    return CliRunner(env=variables).invoke(cli.main, ["tokens", *map(str, arguments)])


def issue(file: Path, name: str) -> str:
    result = tokens("issue", name, "--file", file)
    assert result.exit_code == 0, result.output
    token: str = result.stdout.strip()
    return token


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_shown_once_and_kept_nowhere(file: Path) -> None:
    result = tokens("issue", "hospital-7", "--file", file)
    assert result.exit_code == 0
    token = result.stdout.strip()
    assert token.startswith("muster_")
    assert token not in result.stderr
    assert file.read_text() == f"hospital-7 {digest(token).hex()}\n"
    assert mode(file) == 0o600


def test_it_can_be_written_to_a_file_that_only_the_owner_reads(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "hospital-7.token"
    result = tokens("issue", "hospital-7", "--file", file, "--out", out)
    assert result.exit_code == 0
    assert "muster_" not in result.output
    assert mode(out) == 0o600
    found = parse(file.read_text()).find(out.read_text().strip())
    assert found is not None
    assert found.name == "hospital-7"


def test_a_token_that_is_there_is_never_written_over(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "token"
    out.write_text("precious")
    result = tokens("issue", "a", "--file", file, "--out", out)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {out} is there already; remove it, or name another file\n"
    assert out.read_text() == "precious"
    assert not file.exists()


def test_if_it_can_not_be_noted_it_is_not_given_out(file: Path, tmp_path: Path) -> None:
    file.write_text("junk")
    out = tmp_path / "token"
    for options in ([], [f"--out={out}"]):
        result = tokens("issue", "a", "--file", file, *options)
        assert result.exit_code == 1
        assert result.stderr == (
            f"Error: {file}: line 1: write a name and the SHA-256 of its token, in 64 hexadecimal digits\n"
        )
        assert "muster_" not in result.output
    assert not out.exists()
    assert file.read_text() == "junk"


@pytest.mark.parametrize("name", ["a b", "#a", "anonymous-1", "", "a\x07"])
def test_a_name_that_can_not_be_one_is_a_usage_error(file: Path, name: str) -> None:
    result = tokens("issue", name, "--file", file)
    assert result.exit_code == 2
    assert "Error: a name must" in result.stderr
    assert not file.exists()


def test_the_file_may_be_named_by_a_variable(file: Path) -> None:
    assert tokens("issue", "a", MUSTER_TOKENS=str(file)).exit_code == 0
    assert tokens("list", MUSTER_TOKENS=str(file)).stdout == "a\n"
    missing = tokens("list")
    assert missing.exit_code == 2
    assert "--file" in missing.stderr


def test_all_tokens_of_a_name_are_revoked(file: Path) -> None:
    first, other = issue(file, "a"), issue(file, "b")
    second = issue(file, "a")
    result = tokens("revoke", "a", "--file", file)
    assert result.stdout == "2 of 2 tokens of a are revoked\n"
    left = parse(file.read_text())
    assert left.find(first) is None
    assert left.find(second) is None
    assert left.find(other) is not None
    assert mode(file) == 0o600
    assert tokens("revoke", "b", "--file", file).stdout == "1 of 1 token of b is revoked\n"


def test_a_token_is_replaced_without_a_gap(file: Path) -> None:
    old, new = issue(file, "a"), issue(file, "a")
    assert len(parse(file.read_text())) == 2
    result = tokens("revoke", "a", "--keep-newest", "--file", file)
    assert result.stdout == "1 of 2 tokens of a is revoked\n"
    left = parse(file.read_text())
    assert left.find(old) is None
    assert left.find(new) is not None
    assert tokens("revoke", "a", "--keep-newest", "--file", file).exit_code == 0


def test_a_name_that_is_not_there_is_an_error(file: Path) -> None:
    issue(file, "a")
    before = file.read_text()
    result = tokens("revoke", "hospital-8", "--file", file)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {file} has no token of hospital-8")
    assert file.read_text() == before


def test_a_file_that_is_not_there_is_an_error_but_for_the_first_token(file: Path) -> None:
    for arguments, verb in [(["revoke", "a"], "change"), (["list"], "read")]:
        result = tokens(*arguments, "--file", file)
        assert result.exit_code == 1
        assert result.stderr == f"Error: can't {verb} {file}: No such file or directory\n"
    assert not file.exists()


def test_those_who_have_tokens_are_listed_without_them(file: Path) -> None:
    secrets = [issue(file, "b"), issue(file, "a"), issue(file, "b")]
    result = tokens("list", "--file", file)
    assert result.stdout == "b (2 tokens)\na\n"
    as_json = tokens("list", "--json", "--file", file)
    assert json.loads(as_json.stdout) == [{"name": "b", "tokens": 2}, {"name": "a", "tokens": 1}]
    assert not any(secret in result.output + as_json.output for secret in secrets)
    file.write_text("# none\n")
    assert tokens("list", "--file", file).stdout == f"{file} has no tokens\n"
    assert json.loads(tokens("list", "--json", "--file", file).stdout) == []


def test_comments_and_links_stay_and_others_can_not_read_it_any_more(file: Path, tmp_path: Path) -> None:
    there = tmp_path / "elsewhere"
    there.write_text("# ours\n")
    there.chmod(0o606)
    file.symlink_to(there)
    issue(file, "a")
    assert file.is_symlink()
    assert there.read_text().startswith("# ours\na ")
    assert mode(there) == 0o600
    assert sorted(each.name for each in tmp_path.iterdir()) == ["elsewhere", "tokens"], "nothing is left over"


def test_who_could_read_it_by_the_group_still_can(file: Path) -> None:
    """It may be the coordinator, which must see who is revoked."""
    issue(file, "a")
    file.chmod(0o664)
    tokens("revoke", "a", "--file", file)
    assert file.read_text() == ""
    assert mode(file) == 0o640


def test_many_at_once_lose_nothing(file: Path) -> None:
    program = (
        "import sys; from coordinator.commands.cli import main\n"
        "for number in range(10): main(['tokens', 'issue', f'{sys.argv[1]}-{number}', '--file', sys.argv[2]],"
        " standalone_mode=False)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", program, f"writer-{writer}", str(file)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for writer in range(4)
    ]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    assert len(parse(file.read_text())) == 40


def test_a_change_that_fails_half_way_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    issue(file, "a")
    before = file.read_text()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TokenFileError, match=f"can't change {file}: No space left on device"):
        token_file.change(file, lambda text: (text + "more", None))
    assert file.read_text() == before
    assert [each.name for each in file.parent.iterdir()] == ["tokens"]
