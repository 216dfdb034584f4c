"""Own code as objects: the modules of a study's ``[code]``, made from the pinned bytes alone.

resolve(study.code, "my_net:MyNet")          # the class

No file is imported: not from a folder, not from ``sys.path``, not from ``__pycache__``. The modules of one ``[code]`` see each other by
their names and otherwise only what is installed; those of another study are other modules, of the same name too.
"""

from __future__ import annotations

import builtins
import linecache
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from inspect import signature
from types import ModuleType
from typing import Any

from fedml.code.imports import check_imports, importable, text_of
from fedml.errors import InputError, nearest
from fedml.study.code_section import Code
from fedml.study.own_names import own_names, own_options
from fedml.study.sources import files_of
from fedml.study.study import Study

_FORBIDDEN: list[str] = []  # why this process runs no own code


def forbid(why: str) -> None:
    """From now on this process loads no own code. ``why``: a phrase for the error."""
    _FORBIDDEN.append(why)


@contextmanager
def forbidden(why: str) -> Iterator[None]:
    """The same for a while: what is looked at comes from somebody else."""
    _FORBIDDEN.append(why)
    try:
        yield
    finally:
        _FORBIDDEN.remove(why)


def is_forbidden() -> bool:
    """Whether own code is not loaded now."""
    return bool(_FORBIDDEN)


def resolve(code: Code | None, name: str) -> Any:
    """The object that ``module:name`` refers to.

    Raises:
        InputError: there is none, its module cannot be loaded, or this process may not run own code.
    """
    module, _, attribute = name.partition(":")
    if code is None or not code.digest_of(module):
        raise InputError(f'"{name}": [code] files has no {module}.py; add it.')
    found = _load(code, module)
    if not hasattr(found, attribute):
        own = [key for key in vars(found) if not key.startswith("_")]
        raise InputError(f'[code] {module}.py has no "{attribute}"{nearest(attribute, own)}; correct the name "{name}".')
    return getattr(found, attribute)


def check(study: Study) -> None:
    """Loads every object of own code that ``study`` names, so that an error is told before anything starts.

    Raises:
        InputError: as ``resolve``.
    """
    for key, name in own_names(study.cohort, study.model, study.training, study.evaluation):
        if not callable(found := resolve(study.code, name)):
            raise InputError(f'{key} "{name}" is a {type(found).__name__}; name a class or a function.')
    for key, name, options in own_options(study.cohort, study.model, study.training):
        try:
            signature(resolve(study.code, name)).bind_partial(**options)
        except TypeError as error:
            raise InputError(f'{key} "{name}" does not take its options: {error}; correct the study or the code.') from error
        except ValueError:  # compiled code without a signature
            continue


def call(code: Code | None, name: str, /, *given: Any, **options: Any) -> Any:
    """What the class or function ``name`` gives for these arguments.

    Raises:
        InputError: as ``resolve``; or it fails, with its error and line.
    """
    made = resolve(code, name)
    if not callable(made):
        raise InputError(f'[code] "{name}" is a {type(made).__name__}; name a class or a function.')
    try:
        return made(*given, **options)
    except (KeyboardInterrupt, SystemExit, InputError):
        raise
    except BaseException as error:
        raise failed(code, name, error) from error


def failed(code: Code | None, name: str, error: BaseException) -> InputError:
    """The error of a user's code as one sentence with its line."""
    module = name.partition(":")[0]
    place = _place(error, _path(code, module)) if code is not None else ""
    return InputError(f'own code "{name}" failed ({type(error).__name__}: {error}){place}; correct {module}.py.')


def _path(code: Code, module: str) -> str:
    return f"<own code {module}.py {code.digest_of(module)[:12]}>"


def _load(code: Code, module: str) -> ModuleType:
    if _FORBIDDEN:
        raise InputError(f"own code runs only in a confined process, not here ({_FORBIDDEN[0]}).")
    return _loader(code)(module)


@lru_cache(maxsize=8)
def _loader(code: Code) -> Callable[[str], ModuleType]:
    """The function that makes each module of ``code`` once."""
    files = files_of(code)
    check_imports(files)
    package = "fedml_own_" + sha256("".join(file.sha256 for file in code.modules).encode()).hexdigest()[:16]
    made: dict[str, ModuleType] = {}

    def find(name: str, scope: Mapping[str, Any] | None = None, local: Any = None, wanted: Any = (), level: int = 0) -> Any:
        """``import`` as the modules see it."""
        if level:
            raise ImportError("own code has no package; name the module alone")
        if f"{name}.py" in files:
            return load(name)
        if not importable(name, ()):
            raise ImportError(f"{name} is neither a file of [code] nor installed with this software")
        return builtins.__import__(name, scope, local, wanted or (), 0)

    def load(name: str) -> ModuleType:
        if name in made:
            return made[name]
        source, path = files[f"{name}.py"], _path(code, name)
        module = ModuleType(f"{package}.{name}")
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": find}
        linecache.cache[path] = (len(source), None, source.decode(errors="replace").splitlines(keepends=True), path)
        made[name] = sys.modules[module.__name__] = module  # dataclasses and typing look a class's module up by its name
        try:
            exec(compile(text_of(name, source), path, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - the bytes that the study pins
        except Exception as error:
            made.pop(name, None)
            sys.modules.pop(module.__name__, None)
            raise InputError(f"[code] {name}.py cannot be loaded ({type(error).__name__}: {error}){_place(error, path)}.") from error
        return module

    return load


def _place(error: BaseException, path: str) -> str:
    """The line of own code in which an error was raised: ``, line 7``; "" if it is not known."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f", line {line}" if line else ""
