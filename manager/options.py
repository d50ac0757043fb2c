"""What the command lines share: how options are declared, and types that read them.

Every option can also be given as an environment variable MUSTER_<OPTION>.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from manager.listen import Address
from manager.logs import LOG_FORMATS, LOG_LEVELS

F = TypeVar("F", bound=Callable[..., Any])


def option(*names: str, **settings: Any) -> Callable[[F], F]:
    """``click.option`` that can also be set by MUSTER_<NAME> in the environment."""
    name = next(name for name in names if name.startswith("--")).split("/")[0]
    variable = "MUSTER_" + name.removeprefix("--").replace("-", "_").upper()
    settings.setdefault("show_default", settings.get("default") not in (None, False))
    return click.option(*names, envvar=variable, show_envvar=True, **settings)


class AddressType(click.ParamType[Address]):
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


def log_options(command: F) -> F:
    """--log-level and --log-format."""
    levels = click.Choice(LOG_LEVELS)
    formats = click.Choice(LOG_FORMATS)
    command = option("--log-format", type=formats, default="console", help="Lines for people, or JSON.")(
        command
    )
    return option("--log-level", type=levels, default="info", help="What to log at least.")(command)
