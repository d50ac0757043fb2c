"""What goes together, what has to be asked for, and what workers are told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from manager import Security, StartError, create_participant_manager
from manager.listen import Address
from manager.options import security_options, take_security
from tests.authority import Authority

HERE, EVERYWHERE = Address("127.0.0.1", 1), Address("0.0.0.0", 1)  # noqa: S104
TLS: dict[str, Any] = {"tls_cert": "/c", "tls_key": "/k"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tls_cert": "/c"}, "--tls-cert is of no use without --tls-key"),
        ({"tls_key": "/k"}, "--tls-key is of no use without --tls-cert"),
        ({"tls_client_ca": "/a"}, "--tls-client-ca is of no use without --tls-cert and --tls-key"),
        ({"tls_client_ca": "/a", "insecure": True}, "--tls-client-ca is of no use without"),
    ],
)
def test_half_of_it_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Security(**fields)


@pytest.mark.parametrize("fields", [{}, {"tokens": "/t"}, TLS, {**TLS, "tokens": "/t"}, {"insecure": True}])
def test_on_loopback_everything_goes(fields: dict[str, Any]) -> None:
    Security(**fields).check(HERE)
    assert Security(**fields).warning(HERE) is None


def test_plaintext_for_everybody_has_to_be_asked_for() -> None:
    with pytest.raises(
        ValueError, match=r"0\.0\.0\.0:1 without encryption.* --tls-cert and --tls-key .*--insecure"
    ):
        Security().check(EVERYWHERE)
    with pytest.raises(ValueError, match=r"tokens would travel to 0\.0\.0\.0:1 .* --insecure"):
        Security(tokens="/t").check(EVERYWHERE)
    Security(**TLS).check(EVERYWHERE)
    Security(insecure=True).check(EVERYWHERE)


def test_who_asks_for_it_is_told_what_it_means() -> None:
    warning = Security(insecure=True).warning(EVERYWHERE)
    assert warning is not None
    assert "INSECURE: participants connect to 0.0.0.0:1 without encryption" in warning
    assert "read and change all models" in warning
    assert "take any participant's place" in warning
    with_tokens = Security(insecure=True, tokens="/t").warning(EVERYWHERE)
    assert with_tokens is not None
    assert "tokens of participants are there to be copied" in with_tokens
    assert Security(**TLS, tokens="/t", insecure=True).warning(EVERYWHERE) is None


def test_encryption_alone_keeps_nobody_out_and_that_is_said() -> None:
    words = r"0\.0\.0\.0:1 need neither a token \(--tokens\) nor a certificate \(--tls-client-ca\): whoever"
    assert re.search(words, Security(**TLS).warning(EVERYWHERE) or "")
    assert Security(**TLS, tokens="/t").warning(EVERYWHERE) is None
    assert Security(**TLS, tls_client_ca="/ca").warning(EVERYWHERE) is None


def test_files_are_named_absolutely_but_links_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cert").symlink_to("other")
    security = Security(tls_cert="cert", tls_key=Path("key"))
    assert security.tls == (str(tmp_path / "cert"), str(tmp_path / "key"), None)


# On the command line


@click.command()
@security_options(click.option)
@click.pass_context
def show(ctx: click.Context, /, **options: Any) -> None:
    ctx.obj.append(take_security(options))


def parsed(*arguments: str) -> Security:
    found: list[Security] = []
    result = CliRunner().invoke(show, arguments, obj=found)
    assert result.exit_code == 0, result.output
    return found.pop()


@pytest.mark.parametrize(
    "names", [[], ["tls_cert", "tls_key"], ["tls_cert", "tls_key", "tls_client_ca", "tokens"], ["tokens"]]
)
@pytest.mark.parametrize("insecure", [True, False])
def test_a_worker_is_told_by_options(tmp_path: Path, names: list[str], insecure: bool) -> None:
    files = {name: tmp_path / f"with a space {name}" for name in names}
    for file in files.values():
        file.touch()
    security = Security(**files, insecure=insecure)
    assert parsed(*security.arguments()) == security
    assert all(Path(each.partition("=")[2]).is_absolute() for each in security.arguments() if "=" in each)


def test_a_typing_error_is_a_usage_error(tmp_path: Path) -> None:
    for arguments, words in [
        (["--tokens=/nowhere/t"], "'/nowhere/t' does not exist"),
        ([f"--tokens={tmp_path}"], "is a directory"),
        ([f"--tls-cert={__file__}"], "--tls-cert is of no use without --tls-key"),
    ]:
        result = CliRunner().invoke(show, arguments, obj=[])
        assert result.exit_code == 2
        assert words in result.output


# Reading it all


def test_files_are_read_before_anything_starts(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair, tokens = authority.server(), tmp_path / "tokens"
    tokens.write_text("")
    fields: dict[str, Any] = {"tls_cert": pair.cert, "tls_key": pair.key, "tokens": tokens}
    Security(**fields, tls_client_ca=authority.file).verify()
    tokens.write_text("junk")
    with pytest.raises(StartError, match=f"{tokens} is no file of tokens: line 1: write a name"):
        Security(**fields).verify()
    tokens.write_bytes(b"\xff")
    with pytest.raises(StartError, match=f"{tokens} is no file of tokens: it isn't UTF-8"):
        Security(**fields).verify()
    with pytest.raises(StartError, match=f"{tokens} holds no certificate in PEM"):
        Security(tls_cert=tokens, tls_key=pair.key).verify()


def test_a_single_process_is_as_strict(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"0\.0\.0\.0:\d+ without encryption"):
        create_participant_manager(listen="0.0.0.0:0")
    with pytest.raises(StartError, match="can't read /nowhere/t: No such file"):
        create_participant_manager(listen="127.0.0.1:0", security=Security(tokens="/nowhere/t"))
