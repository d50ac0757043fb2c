"""How a client's token travels, and what can be none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protos.bearer import TokenError, bearer


def test_a_token_travels_as_authorization(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("  muster_from-a-file\n\n")
    assert bearer("muster_abc-_") == (("authorization", "Bearer muster_abc-_"),)
    assert bearer(file) == (("authorization", "Bearer muster_from-a-file"),)
    assert bearer(None) == ()


def test_a_file_is_read_each_time(tmp_path: Path) -> None:
    file = tmp_path / "token"
    for token in ("one", "two"):
        file.write_text(token)
        assert bearer(file) == (("authorization", f"Bearer {token}"),)


NO_TOKENS = ["", " ", "one two", "one\ntwo", "tökens", "one\0two", "\x7f", "secret" * 1000]


@pytest.mark.parametrize("text", NO_TOKENS)
def test_what_can_be_no_token_is_not_repeated(text: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    tokens: list[tuple[str | Path, str]] = [
        (text, "what is given as the token"),
        (file, f"what is in {file}"),
    ]
    for token, where in tokens:
        with pytest.raises(TokenError) as caught:
            bearer(token)
        assert str(caught.value) == (
            f"{where} is no token, which is one line of printable characters without spaces"
        )


@pytest.mark.parametrize(
    ("path", "text"), [("nowhere", "No such file or directory"), ("", "Is a directory")], ids=str
)
def test_a_file_that_can_not_be_read(path: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(TokenError) as caught:
        bearer(tmp_path / path)
    assert str(caught.value) == f"can't read the token in '{tmp_path / path}' ({text})"


@pytest.mark.parametrize("path", [Path("muster_" + 43 * "x"), Path("/here") / ("muster_" + 43 * "-")])
def test_a_token_in_the_place_of_a_files_name_is_not_shown(path: Path) -> None:
    with pytest.raises(TokenError) as caught:
        bearer(path)
    assert str(caught.value) == (
        "what is given as the name of a file that holds a token looks like a token itself"
    )


def test_a_file_of_other_bytes(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TokenError, match="is no token"):
        bearer(file)
