"""The notebooks run from top to bottom in a kernel of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.command import ROOT

NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(tmp_path: Path, notebook: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    shutil.copyfile(notebook, tmp_path / notebook.name)
    book = nbformat.read(tmp_path / notebook.name, as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells), "outputs are made, not stored"
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    told = "".join(str(output.get("text", "")) + str(output.get("data", "")) for cell in book.cells for output in cell.get("outputs", []))
    for words in ("Study       first", "'auroc'", "val_auroc", "probability_1", "pooled", "'clinical': (3, 3)"):
        assert words in told
