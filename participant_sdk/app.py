"""What ``--app module:object`` names: finds the participants, or says in one line why it can't."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from participant_sdk.base import BaseParticipant

_HERE: Final = Path(__file__).parent


class AppError(Exception):
    """``--app`` doesn't name participants. The text says why, in one line."""


class AppFailedError(Exception):
    """The app's own code has raised ``error``. The text says when, in one line."""

    def __init__(self, what: str, error: Exception) -> None:
        super().__init__(what)
        self.error = error


def load_app(app: str) -> list[BaseParticipant]:
    """The participants that ``app`` names: ``module:object``, the object being a Participant, a list of them,
    or a function without arguments that returns either. The module is looked for in the working directory,
    too.

    Raises AppError for a name that leads nowhere or to something else, and AppFailedError for what the module
    raises while it is imported, or the function while it is called.
    """
    module_name, colon, path = app.partition(":")
    if not (module_name and colon and path) or module_name.startswith("."):
        raise AppError(f"{app!r} isn't of the form module:object, such as my_app:participant")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    target = module = _import(app, module_name)
    for name in path.split("."):
        try:
            target = getattr(target, name)
        except AttributeError:
            there = [name for name, value in vars(module).items() if isinstance(value, BaseParticipant)]
            hint = f"; its participants: {', '.join(there)}" if there else ""
            raise AppError(f"there is no {path!r} in module {module_name!r}{hint}") from None
    if callable(target) and not isinstance(target, BaseParticipant):
        target = _call(app, target)
    participants: list[BaseParticipant] = []
    ids: set[str] = set()
    for participant in target if isinstance(target, list | tuple) else [target]:
        if not isinstance(participant, BaseParticipant):
            kind = type(participant).__name__
            raise AppError(f"{app!r} is of type {kind}, not a participant_sdk.Participant or a list of them")
        if participant in participants:
            raise AppError(f"{app!r} holds the same participant twice")
        if participant.participant_id and participant.participant_id in ids:
            raise AppError(
                f"{app!r} holds two participants with the id {participant.participant_id!r}; the coordinator "
                f"would have one of them at a time: give each an id of its own"
            )
        ids.add(participant.participant_id)
        participants.append(participant)
    if not participants:
        raise AppError(f"{app!r} is an empty list of participants")
    return participants


def own_traceback(error: Exception) -> str:
    """What an app has raised, from its own first line on."""
    trace = error.__traceback__
    while trace is not None and _is_not_the_apps(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))


def _is_not_the_apps(file: str) -> bool:
    return file.startswith("<frozen ") or file == importlib.__file__ or Path(file).parent == _HERE


def _import(app: str, name: str) -> object:
    try:
        return importlib.import_module(name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing == name and name.endswith(".py") and "/" not in name:
            meant = app.replace(".py:", ":", 1)
            raise AppError(f"{app!r} names a file, not a module; did you mean {meant}?") from None
        if missing and (name == missing or name.startswith(f"{missing}.")):
            raise AppError(f"there is no module {missing!r} (looked in {Path.cwd()} and sys.path)") from None
        raise AppFailedError(f"{app} can't be imported", error) from None


def _call(app: str, factory: Callable[..., object]) -> object:
    """Calls it, unless it would need arguments."""
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise AppError(f"{app!r} can't be called without arguments: {error}") from None
    except ValueError:  # a builtin that has no signature to check
        pass
    try:
        return factory()
    except Exception as error:
        raise AppFailedError(f"{app} raised {type(error).__name__}: {error}", error) from None
