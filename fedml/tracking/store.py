"""The MLflow store, how processes open it, its error handling, and the package versions that a result depends on. Imports nothing heavy."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fedml.errors import RunError

_WAIT_SECONDS, _MOST_SECONDS = 0.25, 4.0  # between attempts to open a database that another process is creating: first and last wait
_TWICE = re.compile("IntegrityError|UniqueViolation|already exists|RESOURCE_ALREADY_EXISTS")  # another process wrote the same row
T = TypeVar("T")
_SERVERS = ("http://", "https://")
DEFAULT_STORE = "sqlite:///mlflow.db"
PACKAGES = ("fedml-cohorts", "flwr", "torch", "monai", "numpy", "pysam", "pandas", "mlflow", "ray")
_FILE = "sqlite:///"

# Short timeouts: MLflow's defaults wait minutes for a server that is down, and the run's folder has all data anyway.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # `fedml track` prints a run's id


def store() -> str:
    """The tracking store: ``MLFLOW_TRACKING_URI``, or ``mlflow.db`` in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE


def is_new() -> bool:
    """Whether the store is a database in a file that is not there yet."""
    return store().startswith(_FILE) and not Path(store().removeprefix(_FILE)).exists()


def create() -> None:
    """Creates the file of a new store with its tables: under another name, without waiting for the disk after each of 170 statements, then
    whole under its own; nothing where another process was faster. Only for a process that ends then, whose other databases would not wait
    either.

    Raises:
        MlflowException, OSError: the file cannot be made; ``connect`` tells why.
    """
    from mlflow.tracking.client import MlflowClient
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    event.listen(Engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    path = Path(store().removeprefix(_FILE))
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        MlflowClient(f"{_FILE}{fresh}")
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def connect() -> Any:
    """An ``MlflowClient`` of the store. Processes that open a new database wait for the first, which creates its tables.

    Raises:
        MlflowException: the store cannot be opened.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking.client import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    uri, wait = store(), _WAIT_SECONDS
    with _alone(uri) as alone:
        while True:
            try:
                return MlflowClient(uri)  # opens a database and creates its tables
            except (MlflowException, SQLAlchemyError) as error:  # on a database server another process may be creating them
                if alone or wait > _MOST_SECONDS or uri.startswith(_SERVERS):
                    raise error if isinstance(error, MlflowException) else MlflowException(f"{type(error).__name__}: {error}") from error
                time.sleep(wait)
                wait *= 2


def shared(write: Callable[[], T]) -> T:
    """What ``write`` gives, which writes rows that several processes write alike: an experiment's tags, data sets. One process at a time
    does so in a database file; on a server it is repeated if another was faster.

    Raises:
        MlflowException: as ``write``.
    """
    from mlflow.exceptions import MlflowException

    wait = _WAIT_SECONDS
    with _alone(store()):
        while True:
            try:
                return write()
            except MlflowException as error:
                if wait > _MOST_SECONDS or not _TWICE.search(str(error)):
                    raise
            time.sleep(wait)
            wait *= 2


@contextmanager
def _alone(uri: str) -> Iterator[bool]:
    """Holds the right to open a database file, among the processes of this machine; whether it could. Its folder is locked, so that no
    file is left."""
    alone = False
    with ExitStack() as held:
        if uri.startswith(_FILE):
            with suppress(OSError):  # no such folder, which MLflow says; or a file system without locks, where opening is repeated
                folder = os.open(Path(uri.removeprefix(_FILE)).resolve().parent, os.O_RDONLY)
                held.callback(os.close, folder)
                fcntl.flock(folder, fcntl.LOCK_EX)
                alone = True
        yield alone


def store_key(uri: str) -> str:
    """A short name of a store that reveals neither password nor path: 16 hexadecimal digits of a SHA-256."""
    if uri.startswith(_FILE):
        plain = str(Path(uri.removeprefix(_FILE)).resolve())
    else:
        parts = urlsplit(uri)
        plain = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Converts MLflow's errors in the block to a ``RunError`` with one sentence, without the store's password."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        message = re.sub(r"//[^/@]*@", "//", f"{store()}: MLflow reports an error ({' '.join(str(error).split())[:600]})")
        raise RunError(f"{message}; the run's folder has all data, try again (docs/tracking.md).") from error


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    return dict(_versions())


@cache  # a sweep asks for each of its runs; packages do not change while a process has them
def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def runs_of(client: Any, experiment: str, run_id: str) -> list[Any]:
    """The MLflow runs of one run: the parent and the existing children. ``client`` is an ``MlflowClient``."""
    found: list[Any] = []
    page = None
    while page is None or page.token:
        page = client.search_runs([experiment], f"tags.`fedml.run_id` = '{run_id}'", page_token=page.token if page else None)
        found += page
    return found
