"""``coordinator certs``: certificates and keys for development, in a directory.

Decides which files there are, what is kept and what is made anew, and says how they are used. What is in a
certificate is authority.py's business, what is in a key of the link manager/link/keys.py's. Both load when
something is made: --help stays fast.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from coordinator.private import NotPrivateError, directory, write
from coordinator.settings import DEFAULT_LISTEN
from manager.errors import MusterError
from manager.listen import Address
from manager.options import Whole

if TYPE_CHECKING:
    from coordinator.commands.authority import Authority, Known, Pair

DEFAULT_DAYS = 365
DEFAULT_HOSTS = ("localhost", "127.0.0.1", "::1")
LINK_ADDRESS = "tcp://127.0.0.1:5555"

PUBLIC_MODE = 0o644

SOON = timedelta(days=30)
"""A certificate that ends within this time is named."""


class CertsError(MusterError):
    """Certificates can't be made; the text says why and what to do."""


class Files(NamedTuple):
    """A certificate's file and its key's."""

    certificate: Path
    key: Path

    def there(self) -> bool:
        """Whether there is such a certificate. One without the other is what is left of an attempt."""
        return self.certificate.exists() and self.key.exists()


@dataclass(slots=True)
class Certs:
    """A directory of certificates and keys, which ``make`` fills."""

    path: Path
    made: list[str] = field(default_factory=list)
    """What the last ``make`` has made, for people."""
    kept: list[str] = field(default_factory=list)
    """What it has found and left alone."""

    @property
    def ca(self) -> Files:
        return Files(self.path / "ca.pem", self.path / "ca.key")

    @property
    def server(self) -> Files:
        return Files(self.path / "server.pem", self.path / "server.key")

    @property
    def link(self) -> Path:
        """The directory of the link's keys (manager/link/keys.py)."""
        return self.path / "link"

    def participant(self, participant_id: str) -> Files:
        place = self.path / "participants"
        return Files(place / f"{participant_id}.pem", place / f"{participant_id}.key")

    @property
    def hosts(self) -> tuple[str, ...]:
        """What the server's certificate is for."""
        return _known(self.server).hosts

    @property
    def participants(self) -> list[str]:
        """Ids of the participants that have certificates here."""
        return sorted(file.stem for file in (self.path / "participants").glob("*.pem"))


def make(
    path: Path,
    hosts: Sequence[str] = (),
    participants: Sequence[str] = (),
    days: float = DEFAULT_DAYS,
    *,
    renew: bool = False,
) -> Certs:
    """Makes what isn't there yet: an authority, a server's certificate, those of participants, link keys.

    Certificates that are there are kept; with ``renew`` those of the server and of these participants are
    made anew (without ``hosts`` for the same ones). The authority and the link's keys always stay. ``days``
    is how long certificates last. Raises CertsError if that can't be done.
    """
    from coordinator.commands.authority import host, identity

    try:
        hosts = list(dict.fromkeys(map(host, hosts)))
        participants = list(dict.fromkeys(map(identity, participants)))
        place = directory(path)
        if place != path.absolute():  # by links, which somebody could turn
            path = place
        certs = Certs(path)
        for place in (path / "participants", certs.link):
            directory(place)
        _keep_out_of_git(path)
        authority = _authority(certs)
        _server(certs, authority, hosts, days, renew=renew)
        for participant_id in participants:
            _participant(certs, authority, participant_id, days, renew=renew)
        _link_keys(certs)
    except NotPrivateError as error:
        raise CertsError(f"can't keep keys in {error.path}: {error.why}") from None
    except FileExistsError as error:
        raise CertsError(f"{error.filename} has just been made by somebody else; try again") from None
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise CertsError(f"can't make certificates in {path}: {error.strerror or error}{where}") from None
    except ValueError as error:
        raise CertsError(str(error)) from None
    return certs


def _keep_out_of_git(path: Path) -> None:
    ignore = path / ".gitignore"
    if not ignore.exists():
        write(ignore, b"# Private keys.\n*\n", PUBLIC_MODE)


def _authority(certs: Certs) -> Authority:
    from coordinator.commands.authority import Authority, Pair

    files = certs.ca
    missing = [file for file in files if not file.exists()]
    if len(missing) == 1:  # never made anew: others may have what it has signed
        raise ValueError(f"{missing[0]} is missing; restore it, or take another directory")
    if missing:
        _write(files, Authority.make(), replace=False)
    (certs.made if missing else certs.kept).append(f"{files.certificate}, the authority")
    try:
        authority = Authority(Pair(files.certificate.read_bytes(), files.key.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{files.certificate} can't be used: {error}") from None
    if authority.expires <= datetime.now(UTC):
        raise ValueError(
            f"{files.certificate} has expired on {authority.expires:%Y-%m-%d}; take another directory"
        )
    return authority


def _server(certs: Certs, authority: Authority, hosts: Sequence[str], days: float, *, renew: bool) -> None:
    files = certs.server
    if files.there():
        known = _known(files)
        if not renew:
            missing = [each for each in hosts if each not in known.hosts]
            if missing:
                raise ValueError(
                    f"{files.certificate} is for {', '.join(known.hosts)}, not for {', '.join(missing)}; "
                    f"with --renew it is made anew, for the hosts that are then named"
                )
            certs.kept.append(_described(files, f"for {', '.join(known.hosts)}", known))
            return
        hosts = hosts or known.hosts
    hosts = hosts or DEFAULT_HOSTS
    _write(files, authority.server(hosts, days), replace=True)
    certs.made.append(_described(files, f"for {', '.join(hosts)}", _known(files)))


def _participant(
    certs: Certs, authority: Authority, participant_id: str, days: float, *, renew: bool
) -> None:
    files = certs.participant(participant_id)
    if files.there() and not renew:
        certs.kept.append(_described(files, f"of {participant_id}", _known(files)))
        return
    _write(files, authority.participant(participant_id, days), replace=True)
    certs.made.append(_described(files, f"of {participant_id}", _known(files)))


def _link_keys(certs: Certs) -> None:
    import zmq

    from manager.link.keys import COORDINATOR, PUBLIC, SECRET, WORKER, as_file

    for end in (COORDINATOR, WORKER):
        file = certs.link / f"{end}{SECRET}"
        if file.exists():
            continue
        public, secret = zmq.curve_keypair()
        write(certs.link / f"{end}{PUBLIC}", as_file(public), PUBLIC_MODE, replace=True)
        write(file, as_file(public, secret))
        certs.made.append(f"{file}, a key of the link")


def _write(files: Files, pair: Pair, *, replace: bool) -> None:
    write(files.key, pair.key, replace=replace)
    write(files.certificate, pair.certificate, PUBLIC_MODE, replace=replace)


def _known(files: Files) -> Known:
    from coordinator.commands.authority import known

    try:
        return known(files.certificate.read_bytes())
    except ValueError as error:
        raise ValueError(f"{files.certificate} can't be read: {error}") from None


def _described(files: Files, whose: str, known: Known) -> str:
    until = f"until {known.expires:%Y-%m-%d}"
    if known.expires <= datetime.now(UTC) + SOON:
        until += ": --renew makes it anew"
    return f"{files.certificate}, {whose}, {until}"


# How they are used


def start_command(certs: Certs) -> str:
    """The command that starts a coordinator with these certificates."""
    listen = Address.parse(DEFAULT_LISTEN)
    if set(certs.hosts) - set(DEFAULT_HOSTS):
        listen = Address("0.0.0.0", listen.port)  # noqa: S104 - that is what it is for
    arguments = [
        f"--listen={listen}",
        f"--tls-cert={certs.server.certificate}",
        f"--tls-key={certs.server.key}",
    ]
    if certs.participants:
        arguments.append(f"--tls-client-ca={certs.ca.certificate}")
    return shlex.join(["coordinator", "start", *arguments])


def link_options(certs: Certs) -> str:
    """What has to be added to that if the link is to go over TCP."""
    return shlex.join([f"--link={LINK_ADDRESS}", f"--link-keys={certs.link}"])


def participant_command(certs: Certs, participant_id: str | None) -> str:
    """The command that starts a participant: with a certificate of its own, or without any (None)."""
    names = sorted(certs.hosts, key=lambda name: (name.startswith("*."), name in DEFAULT_HOSTS))
    connect = Address(names[0], Address.parse(DEFAULT_LISTEN).port)
    arguments = ["--app=MODULE:OBJECT", f"--connect={connect}", f"--ca={certs.ca.certificate}"]
    if participant_id is not None:
        files = certs.participant(participant_id)
        arguments += [f"--cert={files.certificate}", f"--key={files.key}"]
    return shlex.join(["participant", "start", *arguments])


@click.command("certs", short_help="Make certificates and keys for development.")
@click.option(
    "--dir",
    "path",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("certs"),
    show_default=True,
    help="Where they are kept; nobody else may be able to enter it.",
)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="HOST",
    help="A name or address by which participants reach the server. May be repeated.  "
    f"[default: {', '.join(DEFAULT_HOSTS)}]",
)
@click.option(
    "--participant",
    "participants",
    multiple=True,
    metavar="ID",
    help="A participant that gets a certificate. May be repeated; more can be added later.",
)
@click.option(
    "--days",
    type=Whole(1, 3650),
    default=DEFAULT_DAYS,
    show_default=True,
    help="How long certificates last.",
)
@click.option(
    "--renew", is_flag=True, help="Make those of the server and of the participants named here anew."
)
def certs(path: Path, hosts: Sequence[str], participants: Sequence[str], days: int, renew: bool) -> None:
    """Make certificates for development, and keys for a link over TCP.

    There will be an authority (ca.pem), a certificate for the server, one for each participant, and the
    link's keys. What is there already is kept. At the end it says which commands use them.

    \b
    Example:
      coordinator certs --host fl.example.org --participant hospital-1 --participant hospital-2
    """
    from coordinator.commands.remote import fail

    try:
        done = make(path, hosts, participants, days, renew=renew)
    except CertsError as error:
        fail(str(error))
    for verb, lines in (("made", done.made), ("kept", done.kept)):
        for line in lines:
            click.echo(f"{verb} {line}")
    click.echo(f"\nStart the coordinator with\n  {start_command(done)}")
    click.echo(f"and, if its workers are to reach it over TCP, also\n  {link_options(done)}")
    ids: list[str | None] = [*dict.fromkeys(participants)] or [*done.participants]
    click.echo("Start participants with" if ids else "Start participants, which need no certificates, with")
    for participant_id in ids or [None]:
        click.echo(f"  {participant_command(done, participant_id)}")
    own = " and its own two files" if ids else ""
    click.echo(f"\nA device needs {done.ca.certificate}{own}; {done.ca.key} must stay here.")
