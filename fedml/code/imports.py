"""What a file of own code imports and calls, read from its text without running it.

check_imports(code, files)           # refuses what no site could import
defined("my_net.py", source)         # the names at top level
findings("my_net.py", source)        # what a person at a site should look at: network, files, processes, and what hides them

This finds what is written plainly. Code can hide what it does, so it replaces neither a person's reading nor the confinement.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import metadata

from fedml.errors import InputError, nearest
from fedml.study.code_section import DISTRIBUTION
from fedml.study.packages import module_names
from fedml.text import unsafe_character

_KINDS = {  # what a module opens
    "network": "socket ssl http urllib ftplib smtplib poplib imaplib telnetlib xmlrpc socketserver asyncio select selectors requests httpx "
    "aiohttp urllib3 grpc flwr mlflow websocket wsgiref webbrowser",
    "processes": "subprocess multiprocessing signal pty os posix concurrent threading _thread sched ray joblib",
    "files": "os posix pathlib shutil tempfile glob fileinput io mmap sqlite3 dbm shelve zipfile tarfile fcntl nibabel pysam h5py",
    "hidden code": "importlib runpy pkgutil zipimport builtins ctypes cffi marshal pickle dill cloudpickle code codeop imp gc inspect sys "
    "base64 codecs zlib",
    "this software": "fedml clients strategies experiments",
}
_CALLS = {
    "open": "files", "eval": "hidden code", "exec": "hidden code", "compile": "hidden code", "__import__": "hidden code",
    "globals": "hidden code", "vars": "hidden code", "setattr": "changes other objects", "delattr": "changes other objects",
}  # fmt: skip
_MAKERS = ("globals", "locals", "vars", "exec", "eval", "setattr")  # what can make names that the text does not have
_METHODS = {"load": "files", "save": "files", "fromfile": "files", "tofile": "files", "memmap": "files", "from_file": "files"}


def text_of(name: str, source: bytes) -> str:
    """The text of a file, which is shown and compiled alike: a declaration of another encoding in it has no effect.

    Raises:
        InputError: it is not UTF-8, or has a character that is invisible, reorders others or ends a line only for some readers.
    """
    try:
        text = source.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"[code] {name}: is not UTF-8 text; save it as UTF-8.") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if character := unsafe_character(line, "\t"):
            raise InputError(f"[code] {name}, line {number}: has the character {character}, which a reader does not see; delete it.")
    return text


def parsed(name: str, source: bytes) -> ast.Module:
    """The syntax tree of a file. Raises ``InputError``: it is not Python, with the line."""
    try:
        return ast.parse(text_of(name, source), name)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line, why = (f", line {error.lineno}", error.msg) if isinstance(error, SyntaxError) else ("", str(error))
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise InputError(f"[code] {name}{line}: is not valid Python {version} ({why}); correct it.") from error


def _imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import statement; a relative one begins with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


@lru_cache
def installed() -> frozenset[str]:
    """Top-level modules that every installation of this software has: Python's own, this software's, and those of what it needs."""
    found, waiting = set[str](), [DISTRIBUTION]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another platform
            continue
        found.add(name)
        waiting += [re.split(r"[\s\[<>=!~;(]", line)[0] for line in lines if "extra ==" not in line]
    modules = {
        module
        for module, distributions in metadata.packages_distributions().items()
        if any(re.sub(r"[-_.]+", "-", distribution).lower() in found for distribution in distributions)
    }
    if DISTRIBUTION not in found:  # a saved model, with a copy of this software beside it
        modules |= set(metadata.packages_distributions())
    return frozenset(modules | set(sys.stdlib_module_names) | {"fedml"})


def importable(module: str, own: Collection[str]) -> bool:
    """Whether own code may import ``module`` (a dotted name): one of its own modules, or one that every installation has."""
    return module.partition(".")[0] in own or module.partition(".")[0] in installed()


def check_packages(packages: Sequence[Mapping[str, bytes]]) -> None:
    """Checks the distributions of own code, by path. What they import is told where it is imported: it may be optional.

    Raises:
        InputError: a file is not Python, or a module has the name of one that this software needs.
    """
    for files in packages:
        for module, path in module_names(files).items():
            parsed(path, files[path])
            if module in installed():
                raise InputError(
                    f"[code] packages: {path} has the name of a module that this software needs; take the package out of [code]."
                )


def check_imports(files: Mapping[str, bytes], others: Collection[str] = ()) -> None:
    """Checks all files of own code, by file name.

    Args:
        others: names of modules of the packages, which they may import.

    Raises:
        InputError: a file is not Python, has the name of an installed module, or imports what a site would not have.
    """
    own = {*(name.removesuffix(".py") for name in files), *others}
    for name, source in files.items():
        tree = parsed(name, source)
        if name.removesuffix(".py") in installed():
            raise InputError(f"[code] {name}: has the name of an installed module; rename the file, such as to my_{name}.")
        for line, module in _imported(tree):
            if module.startswith("."):
                raise InputError(f"[code] {name}, line {line}: imports {module} relative to a package; name the file's module alone.")
            if not importable(module, own):
                raise InputError(
                    f"[code] {name}, line {line}: imports {module}, which is neither a file of [code] nor installed with this "
                    f"software{nearest(module, own)}; add its file to [code] files."
                )


def defined(name: str, source: bytes) -> set[str] | None:
    """The names that a file has at top level, read from its text; None: it makes some in a way that the text does not tell."""
    tree = parsed(name, source)
    if any(isinstance(n, ast.Global) or (isinstance(n, ast.Name) and n.id in _MAKERS) for n in ast.walk(tree)):
        return None
    names, waiting = set[str](), list[ast.AST]([tree])
    while waiting:
        match node := waiting.pop():
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
                waiting += node.decorator_list
                continue
            case ast.Lambda():
                continue
            case ast.Import() | ast.ImportFrom():
                names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
        waiting += ast.iter_child_nodes(node)
    return None if names & {"*", "__getattr__"} else names


def findings(name: str, source: bytes) -> list[tuple[int, str, str]]:
    """(line, what is written, kind) of all that opens network, files or processes, hides what it does, or changes this software."""
    tree, found = parsed(name, source), list[tuple[int, str, str]]()
    for line, module in _imported(tree):
        top = module.partition(".")[0]
        found += [(line, f"import {module}", kind) for kind, modules in _KINDS.items() if top in modules.split()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
            found.append((node.lineno, f"{node.func.id}()", _CALLS[node.func.id]))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
            found.append((node.lineno, f".{node.func.attr}()", _METHODS[node.func.attr]))
        elif isinstance(node, ast.Attribute) and node.attr.startswith("__") and node.attr not in ("__init__", "__name__", "__class__"):
            found.append((node.lineno, f".{node.attr}", "hidden code"))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and not _own_attribute(node):
            found.append((node.lineno, f"{ast.unparse(node)} = ...", "changes other objects"))
    return sorted(set(found))


def _own_attribute(node: ast.Attribute) -> bool:
    """Whether an attribute that is set is one of ``self``."""
    value: ast.expr = node.value
    while isinstance(value, ast.Attribute | ast.Subscript):
        value = value.value
    return isinstance(value, ast.Name) and value.id == "self"
