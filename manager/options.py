"""What the command lines share: how options are declared, and types that read them.

Every option can also be given as an environment variable MUSTER_<OPTION>.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from click.core import ParameterSource

from manager.access.security import Security
from manager.limits import Limits
from manager.listen import Address
from manager.logs import LOG_FORMATS, LOG_LEVELS

F = TypeVar("F", bound=Callable[..., Any])

HELP = {"help_option_names": ["-h", "--help"]}
"""Settings of the context of a command line; its commands inherit them."""

if TYPE_CHECKING:
    from click import ParamType as ParamType
else:

    class ParamType(click.ParamType):
        """Click's own, which takes a type in brackets only from version 8.4 on."""

        def __class_getitem__(cls, _type):
            return cls


CONFIG = "muster.config"
"""The file in which a command's defaults are, in ``Context.meta``."""


class _Option(click.Option):
    """Errors name where the value is from, rather than each place where it could be."""

    def get_error_hint(self, ctx: click.Context | None) -> str:
        source = None if ctx is None else ctx.get_parameter_source(self.name or "")
        if ctx is not None and source is ParameterSource.DEFAULT_MAP:
            return f"{self.opts[0].removeprefix('--')} in {ctx.meta[CONFIG]}"
        if source is ParameterSource.COMMANDLINE:
            return click.Parameter.get_error_hint(self, cast(click.Context, ctx))
        return super().get_error_hint(cast(click.Context, ctx))


class Whole(click.IntRange):
    """A whole number on the command line."""

    name = "integer"


class Number(click.FloatRange):
    """Any number on the command line."""

    name = "number"


def option(*names: str, **settings: Any) -> Callable[[F], F]:
    """``click.option`` that can also be set by MUSTER_<NAME> in the environment."""
    name = next(name for name in names if name.startswith("--")).split("/")[0]
    variable = "MUSTER_" + name.removeprefix("--").replace("-", "_").upper()
    settings.setdefault("show_default", settings.get("default") not in (None, False))
    return click.option(*names, cls=_Option, envvar=variable, show_envvar=True, **settings)


class AddressType(ParamType[Address]):
    """``host:port`` on the command line."""

    name = "host:port"

    def convert(
        self, value: str | Address, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        if isinstance(value, Address):
            return value
        try:
            return Address.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class WindowType(ParamType[tuple[float, float]]):
    """Two times on the command line, as in 10-60."""

    name = "low-high"

    def convert(
        self, value: str | tuple[float, float], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        low, dash, high = value.rpartition("-")
        try:
            if not dash:
                raise ValueError
            return float(low), float(high)
        except ValueError:
            self.fail(f"{value!r}: write two times in seconds, as in 10-60", param, ctx)


_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


class SizeType(ParamType[int]):
    """A number of bytes on the command line: 1000000, 64MiB, 2GiB."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = value.strip().upper().removesuffix("B").removesuffix("I")
        number = text.rstrip("KMGT")
        unit = text.removeprefix(number)
        if not (number.isascii() and number.isdigit() and unit in _UNITS):
            self.fail(f"{value!r}: write a number of bytes, as in 1000000 or 64MiB", param, ctx)
        return int(number) * _UNITS[unit]


_DEFAULTS = Limits()

_LIMITS: list[tuple[str, dict[str, Any]]] = [
    (
        "--max-per-worker",
        {
            "type": Whole(1),
            "metavar": "N",
            "help": "Participants per worker; others are told to come back later.  "
            "[default: as many as it may open files for]",
        },
    ),
    (
        "--max-per-address",
        {
            "type": Whole(1),
            "default": _DEFAULTS.max_per_address,
            "metavar": "N",
            "help": "Streams from one address per worker (IPv6: from one /64); others are told to come back "
            "later. Connections may be twice as many, then those without a stream are closed. Loopback is "
            "exempt. Raise it where many participants are behind one NAT or proxy.",
        },
    ),
    (
        "--max-joins",
        {
            "type": Number(0.1),
            "default": _DEFAULTS.max_joins,
            "metavar": "N",
            "help": "Participants that may join a worker per second; after a quiet time three times as many. "
            "When more come, they are told to come back at times that fit, so that a herd settles and nobody "
            "is refused.",
        },
    ),
    (
        "--come-back",
        {
            "type": WindowType(),
            "default": _DEFAULTS.come_back,
            "show_default": "10-60",
            "metavar": "LOW-HIGH",
            "help": "After how many seconds those may come back who find a worker full: a random time in "
            "this window, which widens when there are many.",
        },
    ),
    (
        "--max-message",
        {
            "type": SizeType(),
            "default": _DEFAULTS.max_message,
            "show_default": "2GiB less a byte",
            "metavar": "SIZE",
            "help": "How large an instruction or an answer may be, at least 4MiB. A call with a larger "
            "instruction is refused; larger answers are failures.",
        },
    ),
    (
        "--upload-memory",
        {
            "type": SizeType(),
            "default": _DEFAULTS.upload_memory,
            "show_default": "96MiB",
            "metavar": "SIZE",
            "help": "Memory of each worker for large answers that arrive. Those without have to wait.",
        },
    ),
    (
        "--upload-disk",
        {
            "type": SizeType(),
            "default": _DEFAULTS.upload_disk,
            "show_default": "16GiB",
            "metavar": "SIZE",
            "help": "Disk of each worker (where TMPDIR is) for those of them that come slowly or are larger.",
        },
    ),
    (
        "--keepalive",
        {
            "type": Number(0.1, 3600),
            "default": _DEFAULTS.keepalive,
            "metavar": "SECONDS",
            "help": "Silence after which a worker pings a participant. Without an answer in half of that "
            "again the participant is lost.",
        },
    ),
    (
        "--handshake-timeout",
        {
            "type": Number(0.1, 3600),
            "default": _DEFAULTS.handshake_timeout,
            "metavar": "SECONDS",
            "help": "From a connection until its TLS and HTTP/2 have begun; then it is closed.",
        },
    ),
    (
        "--hello-timeout",
        {
            "type": Number(0.1, 3600),
            "default": _DEFAULTS.hello_timeout,
            "metavar": "SECONDS",
            "help": "From a stream until its first message; then it is ended.",
        },
    ),
    (
        "--idle-timeout",
        {
            "type": Number(0.1, 3600),
            "default": _DEFAULTS.idle_timeout,
            "metavar": "SECONDS",
            "help": "For how long there may be a connection without a stream that was let in. Streams may be "
            "idle for ever.",
        },
    ),
    (
        "--max-metadata",
        {
            "type": SizeType(),
            "default": _DEFAULTS.max_metadata,
            "show_default": "8KiB",
            "metavar": "SIZE",
            "help": "How large the headers of a stream may be, a token among them.",
        },
    ),
]

LIMIT_NAMES = [name.removeprefix("--").replace("-", "_") for name, _ in _LIMITS]


def limit_options(declare: Callable[..., Callable[[F], F]]) -> Callable[[F], F]:
    """The options of limits.py, each declared by ``option`` or ``click.option``."""

    def decorate(command: F) -> F:
        for name, settings in reversed(_LIMITS):
            settings = {"show_default": settings.get("default") is not None, **settings}
            command = declare(name, **settings)(command)
        return command

    return decorate


def take_limits(options: dict[str, Any]) -> Limits:
    """Takes these options out of those of a command. Raises click.UsageError for what makes no sense."""
    try:
        return Limits(**{name: options.pop(name) for name in LIMIT_NAMES})
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        raise click.UsageError(f"--{name.replace('_', '-')} {rest}") from None


_SECURITY: list[tuple[str, str]] = [
    ("--tls-cert", "TLS for participants: this server's certificate, with its chain, in PEM."),
    ("--tls-key", "Its private key, in PEM. Both files are read again when they change."),
    (
        "--tls-client-ca",
        "Mutual TLS: participants need a certificate of this authority; its name is their id. PEM.",
    ),
    ("--tokens", "Participants need a token of this file, which `coordinator tokens` writes."),
]


def security_options(declare: Callable[..., Callable[[F], F]]) -> Callable[[F], F]:
    """The options of security.py, each declared by ``option`` or ``click.option``."""

    def decorate(command: F) -> F:
        command = declare(
            "--insecure",
            is_flag=True,
            help="Serve participants without encryption on an address that isn't loopback.",
        )(command)
        file = click.Path(exists=True, dir_okay=False, path_type=Path)
        for name, text in reversed(_SECURITY):
            command = declare(name, type=file, metavar="FILE", help=text)(command)
        return command

    return decorate


def take_security(options: dict[str, Any]) -> Security:
    """Takes these options out of those of a command. Raises click.UsageError for what makes no sense."""
    names = [name.removeprefix("--").replace("-", "_") for name, _ in _SECURITY]
    try:
        return Security(**{name: options.pop(name) for name in [*names, "insecure"]})
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def log_options(command: F) -> F:
    """--log-level and --log-format."""
    levels = click.Choice(LOG_LEVELS)
    formats = click.Choice(LOG_FORMATS)
    command = option("--log-format", type=formats, default="console", help="Lines for people, or JSON.")(
        command
    )
    return option("--log-level", type=levels, default="info", help="What to log at least.")(command)
