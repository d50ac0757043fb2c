"""``coordinator certs``: certificates that TLS takes for what they are for, keys that nobody else sees."""

from __future__ import annotations

import os
import shlex
import ssl
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import zmq
from click.testing import CliRunner
from cryptography import x509
from cryptography.x509.oid import NameOID

from coordinator.commands import cli
from coordinator.commands.authority import Authority, Pair
from coordinator.commands.certs import (
    Certs,
    CertsError,
    Files,
    link_options,
    make,
    participant_command,
    start_command,
)
from coordinator.private import directory
from manager.link.keys import coordinator_keys, worker_keys


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "certs"


def certificate(files: Files) -> x509.Certificate:
    return x509.load_pem_x509_certificate(files.certificate.read_bytes())


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def shake_hands(
    certs: Certs, server: Files, client: Files | None, host: str, *, trusts: Path | None = None
) -> str:
    """A handshake of mutual TLS in memory, checked as strictly as can be; returns the client's common name.

    Raises ssl.SSLError of the side that refuses.
    """
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(*server)
    client_context = ssl.create_default_context(cafile=str(trusts or certs.ca.certificate))
    if client is not None:
        server_context.verify_mode = ssl.CERT_REQUIRED
        server_context.load_verify_locations(certs.ca.certificate)
        client_context.load_cert_chain(*client)
    for context in (server_context, client_context):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client_context.wrap_bio(down, up, server_hostname=host),
        server_context.wrap_bio(up, down, server_side=True),
    ]
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    if client is None:
        return ""
    presented = ends[1].getpeercert(binary_form=True)
    assert presented is not None
    return common_name(x509.load_der_x509_certificate(presented))


def common_name(read: x509.Certificate) -> str:
    (common,) = read.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(common.value)


# What is in certificates


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_the_server_is_who_it_says_it_is_under_each_of_its_names(path: Path, host: str) -> None:
    certs = make(path)
    assert shake_hands(certs, certs.server, None, host) == ""


def test_a_participant_is_known_by_its_id(path: Path) -> None:
    certs = make(path, ["fl.example.org", "10.0.0.1"], ["hospital-1", "hospital-2"])
    for name in ("hospital-1", "hospital-2"):
        assert shake_hands(certs, certs.server, certs.participant(name), "fl.example.org") == name
        assert common_name(certificate(certs.participant(name))) == name


def test_a_certificate_is_good_for_its_purpose_alone(path: Path) -> None:
    certs = make(path, participants=["hospital-1"])
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(certs, certs.server, None, "example.org")
    with pytest.raises(ssl.SSLError, match="purpose"):
        shake_hands(certs, certs.participant("hospital-1"), None, "localhost")
    with pytest.raises(ssl.SSLError, match="purpose"):
        shake_hands(certs, certs.server, certs.server, "localhost")


def test_another_authoritys_certificates_are_worth_nothing(path: Path, tmp_path: Path) -> None:
    certs, others = make(path, participants=["a"]), make(tmp_path / "others", participants=["a"])
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(certs, others.server, None, "localhost")
    with pytest.raises(ssl.SSLError, match="verify failed"):
        shake_hands(certs, certs.server, others.participant("a"), "localhost")


def test_certificates_last_as_long_as_asked_for_and_no_longer_than_their_authority(path: Path) -> None:
    certs = make(path, participants=["a"], days=7)
    now = datetime.now(UTC)
    for files in (certs.server, certs.participant("a")):
        read = certificate(files)
        assert timedelta(days=6) < read.not_valid_after_utc - now < timedelta(days=8)
        assert read.not_valid_before_utc < now - timedelta(minutes=30), "clocks may be slow"
    certs = make(path, days=10_000, renew=True)
    assert certificate(certs.server).not_valid_after_utc == certificate(certs.ca).not_valid_after_utc


# Whose they are


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_umask")
def test_keys_are_for_nobody_else_to_read(path: Path) -> None:
    make(path, participants=["a"])
    make(path, participants=["a"], renew=True)
    modes = {each: stat.S_IMODE(each.stat().st_mode) for each in [path, *path.rglob("*")]}
    assert {modes[each] for each in modes if each.is_dir()} == {0o700}
    secrets = {each for each in modes if each.is_file() and b"PRIVATE" in each.read_bytes()}
    secrets |= {each for each in modes if each.is_file() and b"secret-key" in each.read_bytes()}
    assert len(secrets) == 5
    assert {modes[each] for each in secrets} == {0o600}
    assert (path / ".gitignore").read_text().endswith("*\n")


def test_a_directory_that_others_can_enter_is_refused(path: Path) -> None:
    path.mkdir(mode=0o755)
    with pytest.raises(CertsError, match=f"can't keep keys in {path}: others can enter it; chmod 700"):
        make(path)
    assert list(path.iterdir()) == []


# What is kept, and what is made anew


def test_keys_go_where_it_has_looked_though_a_link_on_the_way_is_turned(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way, elsewhere = tmp_path / "way", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "real").mkdir()
    way.symlink_to(tmp_path / "real")

    def then_turned(place: Path) -> Path:
        found = directory(place)
        way.unlink()
        way.symlink_to(elsewhere)
        return found

    monkeypatch.setattr("coordinator.commands.certs.directory", then_turned)
    made = make(way / "certs")
    assert made.ca.key.is_file()
    assert made.path == tmp_path / "real" / "certs"
    assert not any(elsewhere.iterdir())


def test_running_it_again_adds_participants_and_changes_nothing_else(path: Path) -> None:
    make(path, participants=["a"])
    before = contents(path)
    certs = make(path, participants=["a", "b"])
    after = contents(path)
    assert {name: after[name] for name in before} == before
    assert sorted(set(after) - set(before)) == ["participants/b.key", "participants/b.pem"]
    assert certs.participants == ["a", "b"]
    assert [line.partition(",")[0] for line in certs.made] == [f"{path}/participants/b.pem"]
    assert len(certs.kept) == 3
    assert shake_hands(certs, certs.server, certs.participant("b"), "localhost") == "b"


def test_what_is_renewed_is_new_and_for_the_same_hosts(path: Path) -> None:
    make(path, ["fl.example.org", "::1"], ["a", "b"])
    before = contents(path)
    certs = make(path, participants=["a"], renew=True)
    after = contents(path)
    changed = sorted(name for name in before if after[name] != before[name])
    assert changed == ["participants/a.key", "participants/a.pem", "server.key", "server.pem"]
    assert shake_hands(certs, certs.server, certs.participant("a"), "fl.example.org") == "a"
    assert list(certs.hosts) == ["fl.example.org", "::1"]
    make(path, ["other.example.org"], renew=True)
    assert list(certs.hosts) == ["other.example.org"]


def test_another_host_for_a_server_that_has_its_certificate_is_asked_for(path: Path) -> None:
    make(path, ["a.example.org"])
    before = contents(path)
    with pytest.raises(CertsError, match=r"is for a\.example\.org, not for b\.example\.org; with --renew"):
        make(path, ["A.example.org", "b.example.org"], ["p"])
    assert contents(path) == before


def test_an_authority_is_never_made_anew(path: Path) -> None:
    certs = make(path)
    for files in (certs.ca, Files(certs.ca.key, certs.ca.certificate)):
        kept = files[0].read_bytes()
        files[0].unlink()
        with pytest.raises(CertsError, match=f"{files[0]} is missing; restore it"):
            make(path, renew=True)
        files[0].write_bytes(kept)
    make(path)


def test_what_an_attempt_has_left_behind_is_in_nobodys_way(path: Path) -> None:
    certs = make(path, participants=["a"])
    certs.server.certificate.unlink()
    certs.participant("a").key.unlink()
    make(path, participants=["a"])
    assert shake_hands(certs, certs.server, certs.participant("a"), "localhost") == "a"


def test_somebody_who_makes_them_at_the_same_time_wins(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = Authority.make

    def slowly(days: float = 1) -> Pair:
        monkeypatch.setattr(Authority, "make", staticmethod(new))
        make(path)
        return new(days)

    monkeypatch.setattr(Authority, "make", staticmethod(slowly))
    with pytest.raises(CertsError, match=r"ca\.key has just been made by somebody else"):
        make(path)
    certs = make(path)
    assert shake_hands(certs, certs.server, None, "localhost") == ""


# Mistakes


@pytest.mark.parametrize("host", ["", "localhost:50051", "a b", "http://a", "-a", "a..b", "münchen.example"])
def test_what_is_no_host_is_refused_before_anything_is_made(path: Path, host: str) -> None:
    with pytest.raises(CertsError, match="is no host"):
        make(path, [host])
    assert not path.exists()


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".a", "a b", "ä", "a" * 65, "a\n"])
def test_what_can_be_no_id_is_refused_before_anything_is_made(path: Path, name: str) -> None:
    with pytest.raises(CertsError, match="can't be a participant's id"):
        make(path, participants=[name])
    assert not path.exists()


def test_an_authority_that_is_none_is_refused(path: Path, tmp_path: Path) -> None:
    certs, others = make(path, participants=["a"]), make(tmp_path / "others")
    pair = Pair(certs.ca.certificate.read_bytes(), certs.ca.key.read_bytes())
    for certificate_from, key_from, words in (
        (certs.ca.certificate, others.ca.key, "its key is another certificate's"),
        (
            certs.participant("a").certificate,
            certs.participant("a").key,
            "it isn't the certificate of an auth",
        ),
        (path / ".gitignore", certs.ca.key, "it can't be read"),
    ):
        wrong = certificate_from.read_bytes(), key_from.read_bytes()
        certs.ca.certificate.write_bytes(wrong[0])
        certs.ca.key.write_bytes(wrong[1])
        with pytest.raises(CertsError, match=f"ca.pem can't be used: {words}"):
            make(path)
        certs.ca.certificate.write_bytes(pair.certificate)
        certs.ca.key.write_bytes(pair.key)


def test_an_authority_that_has_expired_signs_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = Authority.make
    monkeypatch.setattr(Authority, "make", staticmethod(lambda: new(days=-1 / 48)))
    with pytest.raises(CertsError, match=r"ca\.pem has expired on \d{4}-\d\d-\d\d; take another directory"):
        make(path)


def test_where_there_can_be_no_directory_there_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CertsError, match="can't make certificates in"):
        make(tmp_path / "file" / "certs")


# The link's keys


def test_the_two_ends_of_the_link_know_one_another(path: Path) -> None:
    certs = make(path)
    ours, theirs = coordinator_keys(certs.link), worker_keys(certs.link)
    assert theirs.coordinator == ours.pair.public
    assert ours.allowed == {zmq.utils.z85.decode(theirs.pair.public)}


# The command


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.main, ["certs", *arguments])
    return result.exit_code, result.output


def test_the_command_says_what_it_has_made_and_how_it_is_used(path: Path) -> None:
    arguments = (f"--dir={path}", "--host=fl.example.org", "--participant=a", "--participant=b")
    code, output = run(*arguments)
    assert code == 0
    certs = Certs(path)
    for command in (
        start_command(certs),
        link_options(certs),
        *(participant_command(certs, n) for n in "ab"),
    ):
        assert f"  {command}\n" in output
    assert output.count("made ") == 6
    assert "PRIVATE" not in output
    code, again = run(*arguments)
    assert code == 0
    assert "made " not in again
    assert again.partition("\n\n")[2] == output.partition("\n\n")[2]


def test_the_commands_name_files_that_are_there(path: Path) -> None:
    certs = make(path, ["10.0.0.9", "localhost", "*.example.org"], ["a"])
    start = shlex.split(start_command(certs))
    assert start[:3] == ["coordinator", "start", "--listen=0.0.0.0:50051"]
    participant = shlex.split(participant_command(certs, "a"))
    assert "--connect=10.0.0.9:50051" in participant
    files = [word.partition("=")[2] for word in [*start, *participant] if f"={path}" in word]
    assert len(files) == 6
    assert all(Path(file).is_file() for file in files)


def test_without_participants_nobody_needs_a_certificate(path: Path) -> None:
    certs = make(path)
    assert "--listen=127.0.0.1:50051" in start_command(certs)
    assert "--tls-client-ca" not in start_command(certs)
    assert participant_command(certs, None).endswith(f"--connect=localhost:50051 --ca={path}/ca.pem")
    output = run(f"--dir={path}")[1]
    assert f"  {participant_command(certs, None)}\n" in output
    assert output.endswith(f"\nA device needs {path}/ca.pem; {path}/ca.key must stay here.\n")
    output = run(f"--dir={path}", "--participant=a")[1]
    assert f"\nA device needs {path}/ca.pem and its own two files; " in output


def test_a_certificate_that_ends_soon_is_named(path: Path) -> None:
    make(path, participants=["a"], days=5)
    _, output = run(f"--dir={path}", "--participant=a")
    assert output.count("--renew makes it anew") == 2


def test_the_command_says_in_a_sentence_what_is_wrong(path: Path) -> None:
    assert run(f"--dir={path}", "--host=localhost:1") == (
        1,
        "Error: 'localhost:1' is no host; write a name or an address without a port, as in localhost\n",
    )
    assert run(f"--dir={path}", "--days=0")[0] == 2
