"""Error handling for both commands, ``fedml`` and ``fedml-site``."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

from fedml import quiet
from fedml.errors import InputError, RunError, SiteError
from fedml.text import printable

if TYPE_CHECKING:
    import click

_OF_NO_DATA = ("flwr", "mlflow", "alembic")  # libraries that open no file of a person; --debug shows what they log


class PrintableFormatter(logging.Formatter):
    """Records with U+FFFD in the place of characters that a terminal interprets, or that hide or reorder others (``fedml.text``), and of
    exceptions only what ``fedml.quiet`` lets through. Final."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of the record; line ends of a traceback stay."""
        return printable(super().format(record), "\n\t")

    def formatException(self, ei: Any) -> str:
        """The traceback, with the texts of exceptions of this package only."""
        return quiet.frames_of(ei[1]) if ei and ei[1] is not None else ""


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` for typer, with each parameter that is a frozen dataclass replaced by the fields of that class as options, in order.

    The fields' annotations are those of typer (``Annotated[Path, typer.Option(...)]``); a default is the option's default.
    """
    signature, hints = inspect.signature(command), get_type_hints(command, include_extras=True)
    groups = {name: hints[name] for name in signature.parameters if is_dataclass(hints[name])}
    flat: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name not in groups:
            flat.append(parameter.replace(annotation=hints[name]))
            continue
        kinds = get_type_hints(groups[name], include_extras=True)
        for field in fields(groups[name]):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            flat.append(inspect.Parameter(field.name, parameter.kind, default=default, annotation=kinds[field.name]))
    flat.sort(key=lambda p: p.default is not inspect.Parameter.empty)  # stable; Python asks for parameters without a default first

    def run(**values: Any) -> None:
        given = {name: kind(**{f.name: values.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**given, **values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    run.__signature__ = signature.replace(parameters=flat)  # type: ignore[attr-defined]
    return run


def guarded(app: Callable[..., Any], arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a typer app and exits: 0 on success, 1 on a failed run, 2 on invalid input, 3 if MLflow has no complete
    record of a finished run. Prints an error as one sentence, with ``--debug``
    also its traceback."""
    os.environ["PYTHONSAFEPATH"] = "1"  # no Python that this one starts, however it does, imports from the current folder
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    quiet.hush_process(shown=_OF_NO_DATA if debug else ())
    from click import termui

    termui.visible_prompt_func = _asked
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in ("mlflow", "alembic", "absl"):
        logging.getLogger(name).setLevel(logging.INFO if debug else logging.ERROR)
    logging.getLogger("flwr").setLevel(logging.DEBUG if debug else logging.ERROR)
    if debug:
        os.environ["FEDML_DEBUG"] = "1"
    code = _run(app, words, debug)
    quiet.release()
    if unseen := quiet.tell():
        print(f"{quiet.NOTE}{unseen}", file=sys.stderr)
    # os._exit, because the normal shutdown of torch takes a second; all files are written at this point.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _asked(prompt: str = "") -> str:
    """As ``input``, whose C code writes the question to descriptor 2, where nothing is shown."""
    print(prompt, end="", flush=True)
    if not (line := sys.stdin.readline()):
        raise EOFError
    return line.rstrip("\n")


def _run(app: Callable[..., Any], words: Sequence[str], debug: bool) -> int:
    try:
        (_legible(app) if not words or "--help" in words else app)(args=words, standalone_mode=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except (InputError, SiteError) as error:
        return _report(error, 2, debug)
    except RunError as error:
        return _report(error, 1, debug)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has closed the pipe
        return 1
    except Exception as error:
        if debug:
            _trace(error)
        text = printable(f"unexpected {quiet.told(error)}".splitlines()[0])
        print(f"error: {text} (run again with --debug for the traceback and report the error)", file=sys.stderr)
        return 1
    return 0


def _legible(app: Callable[..., Any]) -> Callable[..., Any]:
    """``app`` with the help that click 8.4 and later drop of typer's positional arguments, and without the backslashes that typer puts
    before brackets."""
    import typer

    return with_help(typer.main.get_command(app)) if isinstance(app, typer.Typer) else app


def with_help(command: click.Command) -> click.Command:
    """``command`` and its subcommands, as typer builds them, with the help of every positional argument."""
    from typer.models import ArgumentInfo
    from typer.utils import get_params_from_function

    for inner in getattr(command, "commands", {}).values():
        with_help(inner)
    known = get_params_from_function(inspect.unwrap(command.callback)) if command.callback else {}
    for parameter in command.params:
        told = known[str(parameter.name)].default if parameter.name in known else None
        if isinstance(told, ArgumentInfo):
            parameter.help = told.help
    plain = command.get_help
    command.get_help = lambda ctx: plain(ctx).replace("\\[", "[")  # type: ignore[method-assign]
    return command


def _trace(error: Exception) -> None:
    """Prints where the error came from, without the text of an exception of a library, which can quote values of a file."""
    print(f"Traceback (most recent call last):\n{''.join(traceback.format_tb(error.__traceback__))}{quiet.told(error)}", file=sys.stderr)


def _report(error: Exception, code: int, debug: bool) -> int:
    if debug:
        _trace(error)
    print(f"error: {printable(str(error), chr(10))}", file=sys.stderr)
    return code


def is_debug() -> bool:
    """True if ``--debug`` was given."""
    return os.environ.get("FEDML_DEBUG") == "1"
