"""What can be set about a coordinator, with its defaults. The command line and ``Coordinator`` fill it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coordinator.control_address import ControlAddress, is_local
from coordinator.control_address import parse as parse_control
from manager.access.security import Security
from manager.limits import Limits
from manager.listen import CAN_SHARE_PORT, Address
from manager.logs import LOG_FORMATS, LOG_LEVELS
from manager.typed import check_types

DEFAULT_LISTEN = "127.0.0.1:50051"
DEFAULT_CONTROL = "127.0.0.1:50050"


def default_workers() -> int:
    """One per CPU that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Times are in seconds.

    Raises ValueError for what makes no sense, and TypeError for what isn't of a field's type.
    """

    workers: int = field(default_factory=default_workers)
    listen: Address = field(default_factory=lambda: Address.parse(DEFAULT_LISTEN))
    control: ControlAddress | None = None
    control_tokens: Path | None = None  # scripts and commands need a token of this file
    link: str = "ipc"  # or tcp://host:port, with link_keys
    link_keys: Path | None = None  # a directory, as `coordinator certs` makes it
    share_port: bool = CAN_SHARE_PORT
    pin: bool = False
    grace: float = 10.0  # how long running calls may go on when stopping
    boot_timeout: float = 60.0
    heartbeat: float = 0.5
    liveness: float = 3.0  # a worker silent for so long is taken for dead
    orphan_grace: float = 30.0  # how long workers outlive a coordinator that is gone
    run_dir: Path | None = None  # None: one that goes by the address in ``listen``
    max_participants: int | None = None  # in all; None: as many as the workers take
    max_scripts: int = 100  # attached at once
    limits: Limits = field(default_factory=Limits)  # of each worker
    security: Security = field(default_factory=Security)  # for participants
    reducers: tuple[str, ...] = ()  # import paths (package.module:Class) that cohort.reduce may name
    log_level: str = "info"
    log_format: str = "console"

    def __post_init__(self) -> None:
        check_types(self)
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}")
        for name in ("max_participants", "max_scripts"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        self.security.check(self.listen)
        self._check_control()
        if not self.share_port and self.listen.port + self.workers - 1 > 65535:
            raise ValueError(
                f"{self.workers} workers need consecutive ports, and {self.listen} is too near 65535"
            )
        for name in ("grace", "boot_timeout"):
            if not getattr(self, name) >= 0:  # nor nan
                raise ValueError(f"{name} must be seconds of at least 0, not {getattr(self, name)}")
        if not 0 < self.heartbeat < float("inf"):
            raise ValueError(f"heartbeat must be seconds above 0, not {self.heartbeat}")
        for name in ("liveness", "orphan_grace"):
            if not getattr(self, name) > 2 * self.heartbeat:
                raise ValueError(
                    f"{name} must be more than two heartbeats ({2 * self.heartbeat:g} s), "
                    f"not {getattr(self, name)}: one may be late"
                )
        if self.log_level not in LOG_LEVELS:
            raise ValueError(f"log_level must be one of {', '.join(LOG_LEVELS)}, not {self.log_level!r}")
        if self.log_format not in LOG_FORMATS:
            raise ValueError(f"log_format must be one of {', '.join(LOG_FORMATS)}, not {self.log_format!r}")
        _check_link(self.link, self.link_keys)

    def _check_control(self) -> None:
        control = self.control
        if control is None:
            if self.control_tokens is not None:
                raise ValueError("control_tokens are of no use without control")
            return
        if control == self.listen and self.listen.port:
            raise ValueError(
                f"participants and scripts can't both use {self.listen}; take another control port"
            )
        self._check_tokens()
        if is_local(control) or (self.security.tls is not None and self.control_tokens is not None):
            return
        raise ValueError(
            f"--control {control} lets other machines control the coordinator: that needs --tls-cert and "
            f"--tls-key (`coordinator certs` makes some to begin with) and --control-tokens (`coordinator "
            f"tokens` writes them); or let it be a loopback address, or unix:PATH"
        )

    def _check_tokens(self) -> None:
        ours, theirs = self.control_tokens, self.security.tokens
        if ours is not None and theirs is not None and ours.resolve() == Path(theirs).resolve():
            raise ValueError(
                f"--tokens and --control-tokens are both {ours}: participants could control the coordinator"
            )


def _check_link(link: str, keys: Path | None) -> None:
    if link == "ipc":
        if keys is not None:
            raise ValueError("--link-keys are for a link over tcp://; the ipc socket is this user's alone")
        return
    if not link.startswith("tcp://"):
        raise ValueError(f"link must be ipc or tcp://host:port, not {link!r}")
    if Address.parse(link.removeprefix("tcp://")).host == "*":
        raise ValueError(f"link {link}: write 0.0.0.0 or [::] for all addresses")
    if keys is None:
        raise ValueError(
            f"link {link}: over TCP workers and coordinator must know one another; --link-keys DIR names the "
            f"keys, and `coordinator certs` makes them"
        )


def make_settings(**options: Any) -> Settings:
    """Settings from keyword arguments, in which addresses and paths may be strings, None the default."""
    for name, parse in (
        ("listen", Address.parse),
        ("control", parse_control),
        ("control_tokens", Path),
        ("run_dir", Path),
        ("link_keys", Path),
    ):
        if isinstance(options.get(name), str):
            options[name] = parse(options[name])
    if isinstance(reducers := options.get("reducers"), str):
        raise TypeError(f"reducers must be a list of import paths, not {reducers!r}")
    options["reducers"] = tuple(reducers or ())
    return Settings(**{name: value for name, value in options.items() if value is not None})
