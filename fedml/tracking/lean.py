"""MLflow without the libraries that recording a run does not need: for a process that does nothing else.

    defer()                 # before the first import of mlflow
    from mlflow.tracking.client import MlflowClient

``import mlflow`` runs the code of all of MLflow (agents, evaluation, projects, pandas, FastAPI) before anything is recorded. Here the
``__init__`` of those packages runs when a name of theirs is used first, and their submodules can be imported without it, so whatever needs
more of MLflow gets it, later. pyarrow, which MLflow takes only for artifacts in HDFS, is not found; its own ``except ImportError`` is met.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_DEFERRED = frozenset(
    {"fastapi", "pandas", "pyarrow", "mlflow", "mlflow.artifacts", "mlflow.data", "mlflow.gateway", "mlflow.genai", "mlflow.genai.judges",
     "mlflow.genai.scorers", "mlflow.genai.scorers.online", "mlflow.models", "mlflow.projects", "mlflow.tracing", "mlflow.tracking",
     "mlflow.tracking.fluent"}
)  # fmt: skip
# Names that MLflow's own modules take from those packages, and the module that defines each.
_DEFINED = {"mlflow.__version__": ("mlflow.version", "VERSION"), "mlflow.data.Dataset": ("mlflow.data.dataset", "Dataset")}
_ABSENT = frozenset({"pyarrow.fs"})


class _Deferred(Loader):
    """Loads a module when a name of it is used that is no module. Final."""

    def __init__(self, real: Loader) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> None:
        """The usual kind of module."""

    def exec_module(self, module: ModuleType) -> None:
        """Puts a function in the module that loads it (PEP 562)."""

        def ask(name: str) -> Any:
            whole = f"{module.__name__}.{name}"
            if whole in _DEFINED:
                where, what = _DEFINED[whole]
                return getattr(importlib.import_module(where), what)
            if whole in _DEFERRED:
                return importlib.import_module(whole)
            if name.startswith("__") and name not in ("__all__", "__version__"):  # asked of any module, as by inspect
                raise AttributeError(name)
            vars(module).pop("__getattr__", None)
            assert module.__spec__ is not None  # noqa: S101 - of find_spec
            module.__spec__.loader = self.real
            self.real.exec_module(module)
            return getattr(module, name)

        vars(module)["__getattr__"] = ask


class _Finder(MetaPathFinder):
    """Finds the packages that are loaded later. Final."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module's place, with a loader that waits; None for all others."""
        if fullname in _ABSENT:
            raise ModuleNotFoundError(f"No module named {fullname!r}: not loaded in this process", name=fullname)
        spec = PathFinder.find_spec(fullname, path, target) if fullname in _DEFERRED else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Deferred(spec.loader)
        return spec


def defer() -> None:
    """From now on this process imports MLflow in parts. Nothing changes if MLflow is imported already."""
    if "mlflow" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
