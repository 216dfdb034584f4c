"""Own code as objects: the modules of a study's ``[code]``, files and packages, made from the pinned bytes alone.

resolve(study.code, "my_net:MyNet")          # the class

No file is imported: not from a folder, not from ``sys.path``, not from ``__pycache__``. The modules of one ``[code]`` see each other by
their names and otherwise only what is installed; those of another study are other modules, of the same name too.
"""

from __future__ import annotations

import builtins
import linecache
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from inspect import signature
from types import ModuleType
from typing import Any

from fedml.code.imports import check_imports, check_packages, defined, importable, text_of
from fedml.errors import InputError, nearest
from fedml.study.code_section import Code
from fedml.study.own_names import own_names, own_options
from fedml.study.packages import module_names, package_files
from fedml.study.sources import files_of
from fedml.study.study import Study

_HOME = "__own_package__"  # of a module: the package in which its relative imports begin
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
        raise InputError(f'"{name}": [code] has no {module}; add it to files or packages.')
    found = _load(code, module)
    if not hasattr(found, attribute):
        raise _without(code, name, vars(found))
    return getattr(found, attribute)


def _without(code: Code, name: str, known: Iterable[str]) -> InputError:
    """The error that a module has only the names ``known``."""
    module, _, attribute = name.partition(":")
    own = [key for key in known if not key.startswith("_")]
    return InputError(f'[code] {_file(code, module)} has no "{attribute}"{nearest(attribute, own)}; correct the name "{name}".')


def check_text(study: Study) -> None:
    """As far as the text of own code tells it, what ``check`` tells; nothing is run.

    Raises:
        InputError: a file is not here or is not Python, imports what a site would not have, or lacks a name of the study.
    """
    if study.code is None:
        return
    sources, _ = _sources(study.code)
    for _, name in own_names(study.cohort, study.model, study.training, study.evaluation):
        module, _, attribute = name.partition(":")
        if module in sources and (names := defined(*sources[module])) is not None and attribute not in names:
            raise _without(study.code, name, sorted(names))


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
    if code is None:
        return InputError(f'own code "{name}" failed ({type(error).__name__}: {error}).')
    file = _file(code, module)
    return InputError(
        f'own code "{name}" failed ({type(error).__name__}: {error}){_place(error, _path(code, module, file))}; correct {file}.'
    )


def _file(code: Code, module: str) -> str:
    """The file of a module, for an error and a traceback."""
    for package in code.packages:
        if module.partition(".")[0] in package.modules:
            return module_names(package_files(package)).get(module, module)
    return f"{module}.py"


def _path(code: Code, module: str, file: str) -> str:
    return f"<own code {file} {code.digest_of(module)[:12]}>"


def _load(code: Code, module: str) -> ModuleType:
    if _FORBIDDEN:
        raise InputError(f"own code runs only in a confined process, not here ({_FORBIDDEN[0]}).")
    try:
        return _loader(code)(module)
    except ImportError as error:  # of a package's module, which others may import if they can
        raise InputError(f"[code] {_file(code, module)} cannot be loaded ({type(error).__name__}: {error}).") from error


def _sources(code: Code) -> tuple[dict[str, tuple[str, bytes]], set[str]]:
    """Module -> (file, bytes) of files and packages, checked; and the modules at the top."""
    files, packages = files_of(code), [package_files(package) for package in code.packages]
    tops = {*(file.module for file in code.modules), *(module for package in code.packages for module in package.modules)}
    check_imports(files, tops)
    check_packages(packages)
    sources = {name.removesuffix(".py"): (name, data) for name, data in files.items()}
    for tree in packages:
        sources |= {module: (path, tree[path]) for module, path in module_names(tree).items()}
    return sources, tops


@lru_cache(maxsize=8)
def _loader(code: Code) -> Callable[[str], ModuleType]:
    """The function that makes each module of ``code`` once."""
    sources, tops = _sources(code)
    digests = "".join([*(file.sha256 for file in code.modules), *(package.sha256 for package in code.packages)])
    package = f"{__name__.partition('.')[0]}_own_" + sha256(digests.encode()).hexdigest()[:16]
    made: dict[str, ModuleType] = {}

    def find(name: str, scope: Mapping[str, Any] | None = None, local: Any = None, wanted: Any = (), level: int = 0) -> Any:
        """``import`` as the modules see it."""
        if level:
            name = absolute(name, str((scope or {}).get(_HOME, "")), level)
        if name.partition(".")[0] not in tops:
            if not importable(name, ()):
                raise ImportError(f"{name} is neither of [code] nor installed with this software")
            return __import__(name, scope, local, wanted or (), 0)  # of this module: a saved model's copy of this software has its own
        found = reach(name)
        for item in (inner for given in wanted or () for inner in (getattr(found, "__all__", ()) if given == "*" else (given,))):
            if not hasattr(found, item) and f"{name}.{item}" in sources:
                load(f"{name}.{item}")
        return found if wanted else made[name.partition(".")[0]]

    def absolute(name: str, home: str, level: int) -> str:
        """The dotted name of a relative import in the package ``home``."""
        parts = home.split(".") if home else []
        if level > len(parts):
            raise ImportError("own code outside a package has no relative imports; name the module alone")
        return ".".join([*parts[: len(parts) - level + 1], *([name] if name else [])])

    def reach(name: str) -> ModuleType:
        """A module, after the packages that it is in."""
        parts = name.split(".")
        for depth in range(1, len(parts)):
            load(".".join(parts[:depth]))
        return load(name)

    def load(name: str) -> ModuleType:
        if name in made:
            return made[name]
        if name not in sources:
            raise ModuleNotFoundError(f"[code] has no module {name}")
        file, source = sources[name]
        path, within = _path(code, name, file), file.endswith("/__init__.py")
        module = ModuleType(f"{package}.{name}")
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": find}
        vars(module)[_HOME] = name if within else name.rpartition(".")[0]
        linecache.cache[path] = (len(source), None, source.decode(errors="replace").splitlines(keepends=True), path)
        made[name] = sys.modules[module.__name__] = module  # dataclasses and typing look a class's module up by its name
        try:
            exec(compile(text_of(file, source), path, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - the bytes that are pinned
        except Exception as error:
            made.pop(name, None)
            sys.modules.pop(module.__name__, None)
            if isinstance(error, ImportError) and "/" in file:
                raise
            raise InputError(f"[code] {file} cannot be loaded ({type(error).__name__}: {error}){_place(error, path)}.") from error
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(made[parent], last, module)
        return module

    return reach


def _place(error: BaseException, path: str) -> str:
    """The line of own code in which an error was raised: ``, line 7``; "" if it is not known."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f", line {line}" if line else ""
