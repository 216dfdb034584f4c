"""A log of version 0, from before there were versions: what its events lack or name in another way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What a log of version 0 lacks.
_LACKING: dict[str, dict[str, Any]] = {
    "start": {"schema": 0, "git_commit": "none", "seed": 0, "versions": {}, "engine": "local", "job": "train"},
    "agreed": {"matching": {}, "variants": 0, "image_shape": [], "parameters": 0},
    "round": {"metrics": {}, "refused": {}},
    "final": {"groups": {}, "refused": {}, "seconds": 0.0},
    "step": {"total": None, "log": False},
    "end": {"reason": ""},
}
# Names of fields in version 0 -> names since version 1.
_RENAMED: dict[str, dict[str, str]] = {
    "agreed": {"told": "disclosed"}, "step": {"told": "log"}, "gwas": {"partly_told": "partly_reported"},
}  # fmt: skip
_ROW: dict[str, dict[str, Any]] = {
    "round": {"train_loss": None, "seen": 0.0, "seconds": 0.0, "update_norm": None, "bytes_out": 0, "bytes_in": 0, "journal": None},
    "final": {"bytes_out": 0, "bytes_in": 0, "journal": None},
    "gwas": {"bytes_out": 0, "bytes_in": 0, "journal": None},
}


def lifted(kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of version 0 with what its event has had since."""
    names = _RENAMED.get(kind, {})
    lifted = {**_LACKING.get(kind, {}), **{names.get(key, key): value for key, value in row.items()}}
    if kind == "checks" and isinstance(lifted.get("checks"), list):
        lifted["checks"] = [{("fix" if key == "mend" else key): value for key, value in cell.items()} for cell in lifted["checks"]]
    if kind in _ROW and isinstance(lifted.get("sites"), Mapping):
        lifted["sites"] = {site: {**_ROW[kind], **own} for site, own in lifted["sites"].items()}
    return lifted
