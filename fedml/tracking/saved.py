"""A saved model of ``mlflow.pyfunc``: MLflow runs this file when it loads the model. It imports nothing of this software by its name.

The model's own copy of the software, ``fedml.zip`` beside the weights, is loaded under a name of its own (``fedml_`` and the start of its
SHA-256). So two models in one process run each their own code, whatever ``fedml`` is installed, and no file of the model's folder is needed
or written after loading. Models with the same copy share it.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import linecache
import sys
import zipfile
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel

PACKAGE = "fedml"
RUN, CODE = "run", "code"  # names of the artifacts: a run's folder, and the copy of the software


class _Copy(MetaPathFinder, Loader):
    """Finds and makes the modules of one copy, whose imports of ``fedml`` mean this copy. ``sources``: path in the zip file -> bytes."""

    def __init__(self, name: str, sources: Mapping[str, bytes]) -> None:
        self.name, self.sources = name, sources

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module's place in the copy; None for modules of anything else."""
        first, *rest = fullname.split(".")
        if first != self.name:
            return None
        place = "/".join([PACKAGE, *rest])
        for file, package in ((f"{place}/__init__.py", True), (f"{place}.py", False)):
            if file in self.sources:
                return ModuleSpec(fullname, self, origin=f"<{self.name}>/{file}", is_package=package)
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        """The usual kind of module."""

    def exec_module(self, module: ModuleType) -> None:
        """Runs the source."""
        spec = module.__spec__
        assert spec is not None  # noqa: S101 - of find_spec
        origin = str(spec.origin)
        text = self.sources[origin.partition("/")[2]].decode("utf-8")
        linecache.cache[origin] = (len(text), None, text.splitlines(keepends=True), origin)  # for tracebacks
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": self._import}
        exec(compile(text, origin, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - the model's own code, as with any pyfunc

    def _import(self, name: str, scope: Any = None, local: Any = None, wanted: Any = (), level: int = 0) -> Any:
        """``import`` as the modules of the copy see it."""
        if level == 0 and name.partition(".")[0] == PACKAGE:
            name = self.name + name.removeprefix(PACKAGE)
        return builtins.__import__(name, scope, local, wanted, level)


def package_of(archive: Path) -> str:
    """The name under which the copy of the software in a zip file can be imported."""
    data = archive.read_bytes()
    name = f"{PACKAGE}_{hashlib.sha256(data).hexdigest()[:16]}"
    if not any(isinstance(finder, _Copy) and finder.name == name for finder in sys.meta_path):
        with zipfile.ZipFile(archive) as file:
            sources = {entry: file.read(entry) for entry in file.namelist()}
        sys.meta_path.insert(0, _Copy(name, sources))
    return name


class Scorer(PythonModel):  # type: ignore[misc]
    """Loads a run's folder (artifact ``run``) with the software in the artifact ``code`` and predicts."""

    def load_context(self, context: Any) -> None:
        """Builds the network and loads its weights; nothing is unpickled."""
        name = package_of(Path(context.artifacts[CODE]))
        self._scoring = importlib.import_module(f"{name}.tracking.scoring")
        self._study, self._model = self._scoring.restore(Path(context.artifacts[RUN]))

    # MLflow reads the annotation; DataFrame makes it accept the types of the signature, also an array or a dictionary.
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """A table, one row a person, with the columns of the task's answer: ``predicted``, of classes ``probability_<class>`` too."""
        return self._scoring.score(self._study, self._model, model_input)


if __name__ != f"{PACKAGE}.tracking.saved":  # MLflow runs this file under another module name
    mlflow.models.set_model(Scorer())
