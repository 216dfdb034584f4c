"""Sites of three clinical columns with any label columns, and one part of all their persons as one table, read by pandas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fedml.clients.site.read import load_cohort
from fedml.study.section import PartName
from fedml.study.study import Study
from tests.conftest import make_study, write_csv, write_manifest

COLUMNS = ["x1", "x2", "x3"]
SITES = ("a", "b", "c")
# All persons in one batch: the sites' steps together are the steps on the pooled persons.
CONVERGED: dict[str, Any] = {
    "training__optimizer": "sgd", "training__momentum": 0.7, "training__keep_optimizer": True, "training__batch_size": 0,
    "training__evaluate_every": 0,
}  # fmt: skip


def three_columns(**changes: Any) -> Study:
    """A study of the three sites, linear in the columns as they are."""
    return make_study(sites=SITES, **({"cohort__clinical": {"columns": COLUMNS, "indicate": False}} | changes))


def column_site(folder: Path, name: str, x: npt.NDArray[np.float64], labels: Mapping[str, Iterable[Any]]) -> Path:
    folder.mkdir(parents=True)
    ids = [f"{name}{k:04d}" for k in range(len(x))]
    write_csv(folder / "persons.csv", ids, labels)
    write_csv(folder / "clinical.csv", ids, {column: x[:, k] for k, column in enumerate(COLUMNS)})
    return write_manifest(folder, name, clinical='{ path = "clinical.csv" }')


def table_of(manifests: Sequence[Path], study: Study, part: PartName) -> pd.DataFrame:
    """Columns and labels of the persons of ``part`` whom the study uses, all sites, one row a person."""
    found = []
    for manifest in manifests:
        cohort = load_cohort((str(manifest),), study)
        ids = [cohort.ids[row] for row in cohort.rows(part)]
        tables = (pd.read_csv(manifest.parent / f"{name}.csv", dtype={"id": str}).set_index("id") for name in ("clinical", "persons"))
        found.append(pd.concat([table.loc[ids] for table in tables], axis=1))
    return pd.concat(found)


def raw_weights(arrays: Mapping[str, Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(outputs, columns) weights of the columns as they are, and (outputs,) intercepts, of a linear model's arrays."""
    weight = arrays["encoder.clinical.weight"].double().numpy() / arrays["preprocess.clinical.std"].double().numpy()
    return weight, arrays["encoder.clinical.bias"].double().numpy() - weight @ arrays["preprocess.clinical.mean"].double().numpy()
