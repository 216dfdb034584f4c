"""An input of a person as one frozen value: all that the product asks of it, from a site's files to the saved model and the report.

    IMAGE = Modality(name="image", read=..., sums=..., ranges=NotBuilt("..."), ...)     # every field is required
    read = require(modality.read, modality, "read")     # InputError where it is not built

What a modality cannot do is stated as ``NotBuilt`` with the reason, and whoever needs it is refused by a sentence (``REFUSALS``): nothing
has a default that another modality would inherit. Functions take and give plain values, arrays and torch modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fedml.cohort.dicom.deidentified import Deidentification
from fedml.cohort.inputs import Input
from fedml.errors import InputError, NotBuilt
from fedml.study.section import Section
from fedml.study.study import Study

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedml.modalities.layout import Layout


class DataSection(Section):
    """Base of an input's section of a manifest's ``[data]``: where its files are, relative to the manifest."""

    path: str


Kind = TypeVar("Kind", bound=Input)
Data = TypeVar("Data", bound=DataSection)
Part = TypeVar("Part")
Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Random = np.random.Generator
Text = tuple[str, tuple[str, ...]]  # sentences (empty: none), and where in a run's folder they come from


@dataclass(frozen=True)
class Place(Generic[Data]):
    """One input's section of a site's manifest, ``data``, and what reading needs besides.

    Args:
        folder: that the manifest's paths start from. file: the manifest itself, for errors. cache: the site's folder for caches.
        deidentification, max_quarantined: of the site's policy. window: of raw intensities, once the sites agreed on one.
    """

    data: Data
    folder: Path
    file: Path
    cache: Path
    deidentification: Deidentification
    max_quarantined: float
    window: tuple[float, float] | None = None


class Look(NamedTuple):
    """What a site's doctor found: ``state`` is ok, warn or fail; ``mend`` says how to correct it. No text holds an id or a value."""

    state: Literal["ok", "warn", "fail"]
    text: str
    mend: str = ""


class Form(NamedTuple):
    """What a schema can say of raw values: named ``columns``, an array of a fixed shape, a bag of arrays, or nothing (any)."""

    kind: Literal["columns", "array", "bag", "any"]
    columns: tuple[str, ...] = ()


class Raw(NamedTuple):
    """What goes with raw inputs to a saved model: ``affine`` of arrays of voxels, and the window that the sites agreed on."""

    affine: Any = None
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Words:
    """What is said of an input in the plan, the report, the checklists and the privacy statement. Each takes the study.

    Args:
        plan: what is read, for the plan. column: what a sum before training is taken of, singular. columns: what is standardised, plural.
        sends: what a site says of the input before training, besides sums. uncovered: what a private study releases of it all the same.
        fact: what the study declares of the input. preparation: what is done to it before standardisation. missing: what stands for a value
        that is missing. network: its encoder.
    """

    plan: Callable[[Study], str]
    column: str
    columns: str
    sends: Callable[[Study], tuple[str, ...]]
    uncovered: Callable[[Study], tuple[str, ...]]
    fact: Callable[[Study], Text]
    preparation: Callable[[Study], Text]
    missing: Callable[[Study], Text]
    network: Callable[[Study], str]


@dataclass(frozen=True)
class Modality(Generic[Kind, Data]):
    """One input of a person. ``value``: an instance of ``Kind``, that input of a cohort's persons.

    Args:
        name: in ``[cohort] inputs``, in the manifest's ``[data]``, and of its keys in a batch and in the model.
        data: its section of the manifest. words: see ``Words``.
        layout: fields of ``fedml.modalities.layout.Layout`` that its preprocessing and encoder are built from.
        described: what a site says of its value before training, by key; declared: for each such key what is wrong with an array that a
            site sends under it ("" where nothing is).
        check: refuses what the study asks of the input and nobody can build.
        read: (place, study, ids) the input of those persons, in that order.
        inspect: (place, ids of the persons table or None) what the site's doctor finds, without reading more than it must.
        summary: (value, study) lines for ``fedml-site check``.
        pool: of several sites: (site, value or None, persons) each.
        preprocess: (study, layout). encoder: (study, layout, preprocess, outputs).
        sums: (value, rows) (3, columns): count, sum and sum of squares over those persons.
        bounded: (value, rows, unit) the same where a person adds numbers from -1 to 1 to each; ``unit`` brings values there.
        ranges: (study, layout) (2, columns) lowest and highest plausible value, from the study alone.
        canary: (value, study, ranges, count, random) that many persons who are easily found again: for ``fedml audit``.
        placeholder: (value, study, random) persons who do not exist, as many and with the same values missing: no value of a real one.
        write: (value, study, ids, folder) writes files that ``read`` reads back; returns the value of its key in ``[data]``.
        raw: (values, study, given) a batch's tensors of raw values, as a saved model is given them.
        example: (study, layout) one person in that form. form: see ``Form``.
        packages: that the study's use of the input needs beyond those of every model.
    """

    name: str
    data: type[Data]
    words: Words
    layout: tuple[str, ...]
    described: Callable[[Kind], Mapping[str, Any]]
    declared: Callable[[], Mapping[str, Callable[[Any], str]]]
    check: Callable[[Study], object]
    read: Callable[[Place[Data], Study, Sequence[str]], Kind] | NotBuilt
    inspect: Callable[[Place[Data], Sequence[str] | None], Iterator[Look]] | NotBuilt
    summary: Callable[[Kind, Study], list[str]] | NotBuilt
    pool: Callable[[Sequence[tuple[str, Kind | None, int]], Study], Kind] | NotBuilt
    preprocess: Callable[[Study, Layout], nn.Module] | NotBuilt
    encoder: Callable[[Study, Layout, nn.Module, int], nn.Module] | NotBuilt
    sums: Callable[[Kind, Rows], Array] | NotBuilt
    bounded: Callable[[Kind, Rows, Callable[[Array], Array]], Array] | NotBuilt
    ranges: Callable[[Study, Layout], Array] | NotBuilt
    canary: Callable[[Kind, Study, Array, int, Random], Kind] | NotBuilt
    placeholder: Callable[[Kind, Study, Random], Kind] | NotBuilt
    write: Callable[[Kind, Study, Sequence[str], Path], Mapping[str, str]] | NotBuilt
    raw: Callable[[Any, Study, Raw], dict[str, torch.Tensor]] | NotBuilt
    example: Callable[[Study, Layout], Any] | NotBuilt
    form: Callable[[Study], Form] | NotBuilt
    packages: Callable[[Study], tuple[str, ...]] | NotBuilt


# Field -> what is refused without it, and what to do.
REFUSALS: dict[str, tuple[str, str]] = {
    "read": ("no study can read it", "take it out of [cohort] inputs"),
    "inspect": ("fedml-site doctor cannot look at it", "use fedml-site check, which reads all of it"),
    "summary": ("fedml-site check cannot say what it read of it", "take it out of [cohort] inputs"),
    "pool": ("sites that have it cannot be pooled", "run the sites one by one"),
    "preprocess": ("no model can be built on it", "take it out of [cohort] inputs"),
    "encoder": ("no model can be built on it", "take it out of [cohort] inputs"),
    "sums": ("it cannot be standardised before training", "take it out of [cohort] inputs"),
    "bounded": ('a study with [privacy] statistics = "private" cannot use it', 'set statistics = "stated"'),
    "ranges": ("a private study cannot use it", 'set [privacy] unit = "none", or take it out of [cohort] inputs'),
    "canary": ("a run that uses it cannot be audited", "audit a study without it"),
    "placeholder": ("a study that uses it cannot be rehearsed", "start the site without --dry-run"),
    "write": ("persons who do not exist cannot be written with it, for a rehearsal or an audit", "leave both out"),
    "raw": ("a saved model cannot be given raw values of it", "score with a model that does not use it"),
    "example": ("a saved model that uses it has no signature", "track a run that does not use it"),
    "form": ("a saved model that uses it has no signature", "track a run that does not use it"),
    "packages": ("a saved model that uses it has no list of requirements", "track a run that does not use it"),
}


def require(part: Part | NotBuilt, modality: Modality[Any, Any], field: str) -> Part:
    """``part``, the modality's ``field``.

    Raises:
        InputError: the modality does not have it; the sentence names the input, what cannot be done, the reason and what to do.
    """
    if not isinstance(part, NotBuilt):
        return part
    refused, instead = REFUSALS[field]
    raise InputError(f'input "{modality.name}": {refused} ({part.reason}); {instead}.')


def nothing(study: Study) -> tuple[()]:
    """Nothing to say."""
    return ()


def no_text(study: Study) -> Text:
    """No sentence."""
    return "", ()


def table_sums(values: Array) -> Array:
    """(3, columns): how many are present, their sum, the sum of their squares; NaN is absent."""
    filled = np.nan_to_num(values, nan=0.0)
    return np.stack([(~np.isnan(values)).sum(0).astype(np.float64), filled.sum(0), (filled**2).sum(0)])


def shaped(dtype: str, *shape: int | None) -> Callable[[Any], str]:
    """A check of ``declared``: the type, and for each axis its length or None for any."""

    def wrong(value: Any) -> str:
        fits = str(value.dtype) == dtype and value.ndim == len(shape)
        fits = fits and all(want is None or have == want for have, want in zip(value.shape, shape, strict=True))
        return "" if fits else "is not of the declared shape and type"

    return wrong
