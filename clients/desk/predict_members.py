"""The models that predict together: one run, or an ensemble of runs of one study that differ in their seeds; and their views of an image.

members = load_members([run, other])                       # InputError unless they see and answer the same
how = How(flips=(1,), turns=False, dropout=0)
scores = scores_of(members, opened, how)                   # scores (classes, *size), entropy and mutual information of each voxel
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from fedml.cohort.one_image import Opened, Window, prepare_one
from fedml.errors import InputError
from fedml.models.uncertainty import Spread, apply, dropout, spread, symmetries, undo
from fedml.runs.log import MODEL, load_model, saved_window
from fedml.runs.restore import restore
from fedml.seeds import derive_seed
from fedml.study.study import Study

if TYPE_CHECKING:
    from fedml.models.fusion import CohortModel


@dataclass(frozen=True, eq=False)
class Member:
    """A run's study and model, the window its sites agreed on, and the SHA-256 of its weights' file."""

    run: Path
    study: Study
    model: CohortModel
    window: Window | None
    sha256: str


class How(NamedTuple):
    """``flips`` (axes of the prepared image) and ``turns``: test-time augmentation. ``dropout``: passes with dropout, 0 for one without."""

    flips: tuple[int, ...] = ()
    turns: bool = False
    dropout: int = 0

    @property
    def plain(self) -> bool:
        """One pass over the image as it is."""
        return not (self.flips or self.turns or self.dropout)


class Scores(NamedTuple):
    """``logits`` (classes, *size) whose softmax is the mean of the members' probabilities; ``spread`` of these."""

    logits: torch.Tensor
    spread: Spread


def load_members(runs: Sequence[Path]) -> list[Member]:
    """The models of finished runs.

    Raises:
        InputError: a run has no model, is given twice, or sees or answers something else than the first.
    """
    members: list[Member] = []
    for run in runs:
        if not (run / MODEL).exists():
            raise InputError(f"{run}: has no {MODEL}; give the folder of a run that finished.")
        study, model = restore(run)
        sha256 = hashlib.sha256((run / MODEL).read_bytes()).hexdigest()
        members.append(Member(run, study, model, saved_window(load_model(run)[0]), sha256))
    first = members[0]
    for at, other in enumerate(members[1:], start=1):
        if differs := _differs(first.study, other.study):
            raise InputError(f"{other.run}: its study has another {differs} than {first.run}; an ensemble's runs differ in their seeds.")
        if twin := next((one for one in members[:at] if one.sha256 == other.sha256), None):
            raise InputError(f"{other.run}: is the same model as {twin.run}; give runs of different seeds.")
    return members


def _differs(one: Study, other: Study) -> str:
    if one.traits != other.traits:
        return "[model] task"
    if (one.cohort.outcome, one.cohort.classes) != (other.cohort.outcome, other.cohort.classes):
        return "outcome or classes"
    return "" if one.cohort.image == other.cohort.image and one.cohort.inputs == other.cohort.inputs else "[cohort.image]"


def scores_of(members: Sequence[Member], opened: Opened, how: How) -> Scores:
    """The mean of all predictions of an image of masks; of one plain prediction the logits are the network's own.

    Raises:
        InputError: as ``symmetries``.
    """
    passes = _passes(members, opened, how)
    if len(members) == 1 and how.plain:
        logits = next(passes)
        return Scores(logits, spread([torch.softmax(logits, 0)]))
    found = spread(torch.softmax(logits, 0) for logits in passes)
    return Scores(found.mean.clamp_min(torch.finfo(torch.float32).tiny).log(), found)


def _passes(members: Sequence[Member], opened: Opened, how: How) -> Iterator[torch.Tensor]:
    """(classes, *size) logits, moved back, of every member, view and pass."""
    for number, member in enumerate(members):
        same = member.window == members[0].window
        raw = opened.raw
        seen_by = opened.prepared if same else prepare_one(raw.image, raw.affine, member.study.cohort.image, member.window)
        image = torch.from_numpy(seen_by)
        for view in symmetries(image.shape[1:], how.flips, turns=how.turns):
            seen = apply(view, image).contiguous()
            for k in range(max(how.dropout, 1)):
                yield undo(view, _once(member, seen, derive_seed("dropout", member.study.study.seed, number, k), drop=how.dropout > 0))


def check_how(members: Sequence[Member], how: How) -> None:
    """Raises ``InputError`` if a network has no dropout and it is asked, or an axis is not one of the study's images."""
    image = members[0].study.cohort.image
    if image is not None:
        symmetries((1,) * len(image.size), how.flips, turns=False)
    for member in members if how.dropout else ():
        with dropout(member.model, 0) as layers:
            if not layers:
                raise InputError(f"{member.run}: its network has no dropout, so --dropout says nothing; give several runs, or --view.")


def _once(member: Member, image: torch.Tensor, seed: int, *, drop: bool) -> torch.Tensor:
    batch = {"image": image[None]}
    with torch.inference_mode():
        if not drop:
            out: torch.Tensor = member.model(batch)[0].float()
            return out
        with dropout(member.model, seed):
            out = member.model(batch)[0].float()
            return out
