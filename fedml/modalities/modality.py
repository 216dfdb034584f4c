"""An input of a person as one frozen value: all functions of this input, from reading a site's files to the saved model and the report.

    IMAGE = Modality(name="image", read=..., sums=..., ranges=NotBuilt("..."), ...)     # every field is required
    read = require(modality.read, modality, "read")     # InputError if it is not built

A missing function is stated as ``NotBuilt`` with the reason; a caller that needs it gets an error (``REFUSALS``). No field has a default.
Functions take and return plain values, arrays and torch modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

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
    """Base class of an input's section in ``[data]`` of a manifest: the path of its files, relative to the manifest."""

    path: str = Field(description="path of the files, relative to the manifest")


Kind = TypeVar("Kind", bound=Input)
Data = TypeVar("Data", bound=DataSection)
Part = TypeVar("Part")
Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Random = np.random.Generator
Text = tuple[str, tuple[str, ...]]  # sentences ("": none), and pointers to their sources in a run's folder


@dataclass(frozen=True)
class Place(Generic[Data]):
    """One input's section of a site's manifest, ``data``, and the other arguments of reading.

    Args:
        folder: base of the manifest's paths. file: the manifest, for error messages. cache: the site's folder for caches.
        deidentification, max_quarantined: from the site's policy. window: the agreed intensity window; None: not agreed yet.
        id_column: name of the column of ids in the site's tables. extremes: columns whose extreme cells were checked and are right.
        sex: (persons,) 1 man, 2 woman, 0 unknown; None: the study does not say where it is. device: of the site's computations.
    """

    data: Data
    folder: Path
    file: Path
    cache: Path
    deidentification: Deidentification
    max_quarantined: float
    window: tuple[float, float] | None = None
    id_column: str = "id"
    extremes: tuple[str, ...] = ()
    sex: npt.NDArray[np.int8] | None = None
    device: str = "cpu"


class InputFinding(NamedTuple):
    """A finding of ``fedml-site doctor``: ``state`` is ok, warn or fail; ``fix``: how to correct it. No text contains an id or a value."""

    state: Literal["ok", "warn", "fail"]
    text: str
    fix: str = ""


class Form(NamedTuple):
    """The schema of raw values: named ``columns``, an array of a fixed shape, a bag of arrays, or no schema (any)."""

    kind: Literal["columns", "array", "bag", "any"]
    columns: tuple[str, ...] = ()


class Raw(NamedTuple):
    """Additional arguments of raw inputs to a saved model: ``affine`` of voxel arrays, and the agreed intensity window."""

    affine: Any = None
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Words:
    """Texts about an input in the plan, the report, the checklists and the privacy statement. The functions take the study.

    Args:
        plan: the data that are read, for the plan. column: one column in the sums before training. columns: of the standardised.
        sends: information that a site sends before training, in addition to sums. uncovered: information that privacy does not cover.
        fact: the study's declaration of the input. preparation: preprocessing before standardisation. missing: treatment of missing values.
        network: the encoder.
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
    """One input of a person. ``value``: an instance of ``Kind``, the input of all persons of a cohort.

    Args:
        name: in ``[cohort] inputs``, in the manifest's ``[data]``, and in the keys of batches and models.
        data: its section of the manifest. words: see ``Words``.
        layout: fields of ``fedml.modalities.layout.Layout`` that preprocessing and encoder depend on.
        described: arrays that a site sends about its value before training, by key; declared: key -> function that returns the error in an
            array with this key ("": valid).
        check: raises for a study whose settings of this input cannot be built.
        read: (place, study, ids) the input of these persons, in this order.
        inspect: (place, ids of the persons table or None) findings for ``fedml-site doctor``, from reading as little as possible.
        summary: (value, study) lines for ``fedml-site check``.
        pool: the values of several sites, each (site, value or None, persons), as one.
        preprocess: (study, layout). encoder: (study, layout, preprocess, outputs).
        sums: (value, rows) (3, columns): count, sum and sum of squares over these persons.
        bounded: (value, rows, unit) the same sums with contributions of one person from -1 to 1; ``unit`` scales values to this range.
        ranges: (study, layout) (2, columns) lowest and highest plausible value, from the study alone.
        canary: (value, study, ranges, count, random) ``count`` persons who are easy to detect, for ``fedml audit``.
        placeholder: (value, study, random) as many synthetic persons with the same pattern of missing values, without real values.
        write: (value, study, ids, folder) writes files that ``read`` can read; returns the value of the input's key in ``[data]``.
        raw: (values, study, given) the tensors of a batch from raw values in the form of a saved model's input.
        example: (study, layout) one person in this form. form: see ``Form``.
        packages: packages that this input needs in addition to those of every model.
    """

    name: str
    data: type[Data]
    words: Words
    layout: tuple[str, ...]
    described: Callable[[Kind], Mapping[str, Any]]
    declared: Callable[[], Mapping[str, Callable[[Any], str]]]
    check: Callable[[Study], object]
    read: Callable[[Place[Data], Study, Sequence[str]], Kind] | NotBuilt
    inspect: Callable[[Place[Data], Sequence[str] | None], Iterator[InputFinding]] | NotBuilt
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


# Field -> the error without it, and what to do.
REFUSALS: dict[str, tuple[str, str]] = {
    "read": ("no study can read it", "remove it from [cohort] inputs"),
    "inspect": ("fedml-site doctor cannot inspect it", "use fedml-site check, which reads all of it"),
    "summary": ("fedml-site check cannot summarise it", "remove it from [cohort] inputs"),
    "pool": ("sites that have it cannot be pooled", "run the sites one by one"),
    "preprocess": ("no model can be built on it", "remove it from [cohort] inputs"),
    "encoder": ("no model can be built on it", "remove it from [cohort] inputs"),
    "sums": ("it cannot be standardised before training", "remove it from [cohort] inputs"),
    "bounded": ('a study with [privacy] statistics = "private" cannot use it', 'set statistics = "stated"'),
    "ranges": ("a private study cannot use it", 'set [privacy] unit = "none", or remove it from [cohort] inputs'),
    "canary": ("a run that uses it cannot be audited", "audit a study without it"),
    "placeholder": ("a study that uses it cannot be rehearsed", "start the site without --dry-run"),
    "write": ("it cannot be written for synthetic persons, as a rehearsal or an audit needs", "use neither"),
    "raw": ("a saved model cannot read raw values of it", "score with a model that does not use it"),
    "example": ("a saved model that uses it has no signature", "track a run that does not use it"),
    "form": ("a saved model that uses it has no signature", "track a run that does not use it"),
    "packages": ("a saved model that uses it has no list of requirements", "track a run that does not use it"),
}


def require(part: Part | NotBuilt, modality: Modality[Any, Any], field: str) -> Part:
    """``part``, the modality's ``field``.

    Raises:
        InputError: the modality does not have it; the message names the input, the missing function, the reason and what to do.
    """
    if not isinstance(part, NotBuilt):
        return part
    refused, instead = REFUSALS[field]
    raise InputError(f'input "{modality.name}": {refused} ({part.reason}); {instead}.')


def nothing(study: Study) -> tuple[()]:
    """No text."""
    return ()


def no_text(study: Study) -> Text:
    """No sentence."""
    return "", ()


_BLOCK = 1 << 22  # values that are summed at once: 32 MiB of float64, of which a few copies exist at a time


def table_sums(values: Array, rows: Rows | None = None) -> Array:
    """(3, columns): count, sum and sum of squares of the values that are not NaN; of the persons in ``rows``, None: of all.

    A wide matrix is summed by blocks of columns, with the same bits: a column's sum does not depend on the others.
    """
    count, columns = len(values) if rows is None else len(rows), values.shape[1]
    step = max(2, _BLOCK // max(count, 1))
    starts = list(range(0, columns, step)) or [0]
    if len(starts) > 1 and columns - starts[-1] == 1:
        starts.pop()  # numpy adds a single column in another order
    out = np.empty((3, columns))
    for start, stop in zip(starts, [*starts[1:], columns], strict=True):
        block = values[:, start:stop] if rows is None else values[:, start:stop][rows]
        filled = np.nan_to_num(block, nan=0.0)
        out[:, start:stop] = (~np.isnan(block)).sum(0), filled.sum(0), (filled**2).sum(0)
    return out


def block_sums(blocks: Iterable[Array], columns: int) -> Array:
    """(3, columns): ``table_sums`` of rows that come some at a time, each (some, columns).

    They are added row after row, as numpy adds the rows of a whole matrix: with the same bits, except of a single column.
    """
    out = np.zeros((3, columns))
    for block in blocks:
        filled = np.nan_to_num(block, nan=0.0)
        out[0] += (~np.isnan(block)).sum(0)
        for sums, rows in ((out[1], filled), (out[2], filled**2)):
            for row in rows:
                sums += row
    return out


def shaped(dtype: str, *shape: int | None) -> Callable[[Any], str]:
    """A function for ``declared`` that checks the type and the length of each axis; None: any length."""

    def wrong(value: Any) -> str:
        fits = str(value.dtype) == dtype and value.ndim == len(shape)
        fits = fits and all(want is None or have == want for have, want in zip(value.shape, shape, strict=True))
        return "" if fits else "has another shape or type than declared"

    return wrong
