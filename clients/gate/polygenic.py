"""How much of its genotypes a site has told in whole-genome regressions of a study, over all its runs.

Within a run there is one plan of blocks, one set of predictions, and one offset for each chromosome. Another plan, in another run, adds
columns about the same persons: products of other pairs of variants. As for components, all columns together are not more than persons: of
sums by fold, those of a fold. What was asked before reveals nothing new and is not counted again, so a run may be repeated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedml.analytics import forms
from fedml.clients.gate.pins import pin
from fedml.clients.work import polygenic
from fedml.clients.work.request import Request
from fedml.errors import Reason, SiteError
from fedml.runs.log import write_whole
from fedml.wire.records import POLYGENIC, Phase

FOLDER = "polygenic"
_BLOCKS = ("poly_panel", "poly_flips")
_LEVEL = (*forms.DESIGN, *forms.BLOCKED, "level", "level_shift")


def check(state: Path, run: str, request: Request, given: Mapping[str, Any], persons: int) -> None:
    """Raises ``SiteError`` if a request is of another plan than the run's earlier ones, or if all runs of the study asked for too much.

    Args:
        persons: in the analysis.
    """
    if request.phase not in POLYGENIC and not len(given.get("poly_panel", ())):
        return
    plan = polygenic.plan_of(request.study)
    fold, told = persons // plan.folds, "the blocks or predictions of the whole-genome regression changed within the run"
    if "poly_panel" in given:
        blocks = _digest(given, _BLOCKS)
        pin(state, run, {"blocks": blocks}, Reason.REPLAYED, told)
        _spend(state, request.study.sha256, "blocks", blocks, plan.block, fold)
    if "level" in given:
        level = _digest(given, _LEVEL)
        pin(state, run, {"level": level}, Reason.REPLAYED, told)
        _spend(state, request.study.sha256, "level", level, given["level_shift"].shape[1] // plan.folds, fold)
    if request.phase is Phase.RIDGE:
        asked = _digest(given, (*_LEVEL, "theta", "beta", "constant", "fold"))
        _spend(state, request.study.sha256, "ridge", asked, given["beta"].shape[1], persons)
    if "poly_weights" in given:
        leave = int(given["poly_leave"][0])
        offset = _digest(given, tuple(forms.OFFSET))
        pin(state, run, {f"offset {leave}": offset}, Reason.REPLAYED, told)
        _spend(state, request.study.sha256, "offset", offset, 1, fold)


def _digest(given: Mapping[str, Any], names: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}:{given[name].shape}:".encode() + given[name].tobytes())
    return digest.hexdigest()


def _spend(state: Path, study: str, kind: str, content: str, columns: int, most: int) -> None:
    """Counts ``columns`` of ``content``, if it is new. Raises ``SiteError`` if there would be more than ``most``, or the count is lost."""
    path = state / FOLDER / f"{study}.json"
    try:
        known: dict[str, dict[str, int]] = json.loads(path.read_text())
        before = dict(known.get(kind, {}))
        if content in before:
            return
        total = sum(before.values()) + columns
    except FileNotFoundError:
        known, before, total = {}, {}, columns
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SiteError(Reason.STATE_LOST, f"{path}: what was told in whole-genome regressions cannot be read: {error}") from error
    if total > most:
        raise SiteError(
            Reason.TOO_FEW,
            f"the study's runs would need {total} columns of whole-genome regressions ({kind}), of {most} persons; approve a new study",
        )
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_whole(path, json.dumps({**known, kind: {**before, content: columns}}, sort_keys=True).encode())
