"""The events of a run, one frozen class each, and their form in ``events.jsonl``: one JSON object a line.

    row = to_row(End(status="finished", reason=""))        # {"event": "end", "time": ..., "status": "finished", "reason": ""}
    event = from_row(row, schema=1, strict=True)

The version of the form stands in ``start`` (``schema``). A log without one is of version 0, from before there were versions: ``lifted``
adds missing fields, and fields that are no longer read are dropped. With ``strict``, a log of version 1 or later must have known events
with exactly their fields. JSON has no NaN: an undefined number is null, None here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, NotRequired, TypedDict

from fedml.runs.rows import ColumnRow, VariantRow
from fedml.runs.software import Software
from fedml.runs.version_0 import lifted

SCHEMA = 1
Metrics = dict[str, Any]  # name -> float, None where it is undefined


class PartScores(TypedDict):
    """Metrics of one part: of the merged counts, of each site, and the site that does worst by the watched metric."""

    all: Metrics
    sites: dict[str, Metrics]
    worst: str | None


class GroupScores(TypedDict):
    """Metrics of the test persons in one subgroup."""

    all: Metrics
    sites: dict[str, Metrics]


class SiteRow(TypedDict):
    """One site in one exchange: bytes of arrays from the server's view, and head and length of the site's journal from its reply.
    ``witness``: the site's signature on it (``fedml.contract.witness.Witness`` as a dictionary), only of a site that signs."""

    bytes_out: int
    bytes_in: int
    journal: list[Any] | None
    witness: NotRequired[dict[str, str]]


class TrainedRow(SiteRow):
    """One site in one round. ``train_loss`` is the mean over ``seen`` persons, ``seconds`` from the round's beginning to the reply.
    ``update_norm``: Euclidean length of the site's update; None where it is not known."""

    train_loss: float | None
    seen: float
    seconds: float
    update_norm: float | None


class SiteDisclosure(TypedDict):
    """The information that a site disclosed (``fedml.contract.disclosure``); None: not disclosed."""

    policy: dict[str, Any] | None
    dataset: str | None
    quarantined: dict[str, int] | None


class CheckRow(TypedDict):
    """One cell of the matrix of checks (``fedml.cohort.variants.checks.Check``)."""

    site: str
    check: str
    value: str
    verdict: str
    fix: str


class ClaimRow(TypedDict):
    """One claim of privacy (``fedml.privacy.accounting.Claim``) and its sentence."""

    unit: str
    adjacency: str
    epsilon: float | None
    delta: float
    covers: list[str]
    not_covered: list[str]
    events_json: str
    epsilon_rdp: float | None
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Event:
    """Abstract. ``time``: Unix seconds, set when the event is written; 0 for an event that has not come."""

    kind: ClassVar[str]
    time: float = 0.0

    @property
    def came(self) -> bool:
        """Is the event in the log?"""
        return self.time > 0

    def absent(self) -> frozenset[str]:
        """Fields that are not written."""
        return frozenset()


@dataclass(frozen=True, kw_only=True)
class Start(Event):
    """A run begins. ``job``: train, gwas, preflight, or evaluate (of a finished model). ``versions``: of packages that matter.
    ``git_commit``: of the folder with the study's file. ``code``: of this software; None, and not written, in runs from before it was."""

    kind = "start"
    schema: int = SCHEMA
    run_id: str
    study: str
    study_sha256: str
    git_commit: str
    seed: int
    versions: dict[str, str]
    engine: str
    job: str
    code: Software | None

    def absent(self) -> frozenset[str]:
        """``code``, if it is None."""
        return frozenset({"code"} if self.code is None else ())


@dataclass(frozen=True, kw_only=True)
class Checks(Event):
    """The matrix of checks, whether it passed or not."""

    kind = "checks"
    checks: list[CheckRow]


@dataclass(frozen=True, kw_only=True)
class Agreed(Event):
    """What the sites agreed on. ``persons``: site -> part -> persons a class. ``matching``: site -> what was done to match its variants.
    ``disclosed``: what each site disclosed; None, and not written, if no model is trained. ``started``: the arrays that begin as those of
    ``[model] start``; None, and not written, without it. ``first_sha256``: of the weights with which the first round begins; None, and not
    written, if no model is trained, and in runs from before it was. ``columns``: site -> column -> its training persons' values, rounded,
    from the sums that sites send; None, and not written, where no table is read or sums are noised or not sent."""

    kind = "agreed"
    sites: list[str]
    persons: dict[str, dict[str, list[int]]]
    matching: dict[str, dict[str, int]]
    variants: int
    image_shape: list[int]
    disclosed: dict[str, SiteDisclosure] | None
    parameters: int
    started: list[str] | None
    first_sha256: str | None
    columns: dict[str, dict[str, ColumnRow]] | None

    def absent(self) -> frozenset[str]:
        """``disclosed``, ``started``, ``first_sha256`` and ``columns``, if they are None."""
        return frozenset(name for name in ("disclosed", "started", "first_sha256", "columns") if getattr(self, name) is None)


@dataclass(frozen=True, kw_only=True)
class Round(Event):
    """One round of training. ``metrics``: part -> scores of the model as it arrived. ``refused``: site -> reason."""

    kind = "round"
    round: int
    seconds: float
    metrics: dict[str, PartScores]
    sites: dict[str, TrainedRow]
    refused: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Privacy(Event):
    """What the run released: epsilon of the site that spent most, and a claim a site ("" for all). Nothing but ``unit`` is written for
    unit "none"; ``epsilon`` and ``sentence`` are None where nothing was released."""

    kind = "privacy"
    unit: str
    epsilon: float | None
    delta: float
    claims: dict[str, ClaimRow]
    sentence: str | None

    def absent(self) -> frozenset[str]:
        """All but the unit, where it is "none"."""
        return frozenset({"epsilon", "delta", "claims", "sentence"}) if self.unit == "none" else frozenset()


@dataclass(frozen=True, kw_only=True)
class Final(Event):
    """The last evaluation. ``groups``: subgroup's label -> scores of its test persons. ``kept``: the round after which the evaluated model
    was there, if it was chosen by validation metrics; None, and not written, elsewhere. ``meaning_sha256``: one digest of the model, the
    first weights, panel, image shape and constants (``fedml.contract.witness``); None, and not written, in runs from before it was."""

    kind = "final"
    round: int
    weights_sha256: str
    metrics: dict[str, PartScores]
    groups: dict[str, GroupScores]
    sites: dict[str, SiteRow]
    refused: dict[str, str]
    seconds: float
    kept: int | None
    meaning_sha256: str | None

    def absent(self) -> frozenset[str]:
        """``kept`` and ``meaning_sha256``, if they are None."""
        return frozenset(name for name in ("kept", "meaning_sha256") if getattr(self, name) is None)


@dataclass(frozen=True, kw_only=True)
class Resumed(Event):
    """A run that stopped goes on. ``round``: the last complete one, 0 for none; ``status``: how it had stopped (killed: its log had no
    end; failed; stopped), without the reason, which may name a file of the machine. ``rounds_again``, ``evaluations_again``: how many
    requests may have been answered twice, of all times that the run was resumed. ``code``: of this software, with which it goes on."""

    kind = "resumed"
    round: int
    status: str
    rounds_again: int
    evaluations_again: int
    code: Software


@dataclass(frozen=True, kw_only=True)
class Step(Event):
    """Progress of an analysis. ``total``: None if unknown; ``log``: whether to print a line without a terminal."""

    kind = "step"
    doing: str
    done: int
    total: int | None
    log: bool


@dataclass(frozen=True, kw_only=True)
class Gwas(Event):
    """Figures of an association study. ``cases`` and ``controls`` are of a logistic one, ``pca_*`` and ``eigenvalues`` of one with
    principal components: None, and not written, elsewhere. ``inflation`` is written as ``lambda``."""

    kind = "gwas"
    seconds: float
    sites: dict[str, SiteRow]
    persons: dict[str, int]
    cases: int | None
    controls: int | None
    pca_variants: int | None
    pca_steps: int | None
    pca_columns: int | None
    pca_angle_rad: float | None
    eigenvalues: list[float] | None
    tested: int
    variants: int
    inflation: float | None = field(metadata={"key": "lambda"})
    left_out: dict[str, int]
    top: list[VariantRow]
    hits: int
    partly_reported: int
    methods: dict[str, int]

    def absent(self) -> frozenset[str]:
        """What this kind of study does not have."""
        some = ("cases", "controls", "pca_variants", "pca_steps", "pca_columns", "pca_angle_rad", "eigenvalues")
        return frozenset(name for name in some if getattr(self, name) is None)


@dataclass(frozen=True, kw_only=True)
class Frequencies(Event):
    """Figures of a table of allele frequencies. ``groups``: endings of its columns, the first (everyone) is empty; ``left_out``: reason ->
    variants that are not in it; ``withheld``: variants of which some site withheld a group's numbers; ``build``: of positions."""

    kind = "frequencies"
    seconds: float
    sites: dict[str, SiteRow]
    build: str
    groups: list[str]
    variants: int
    left_out: dict[str, int]
    withheld: int


@dataclass(frozen=True, kw_only=True)
class Genes(Event):
    """Figures of tests of genes. ``classes``: cases and controls of a binary outcome; ``left_out``: reason -> variants, or genes of a mask;
    ``inflation``: mask -> median chi-square of SKAT-O over that of no effect; ``top``: rows of the table with the smallest combined p."""

    kind = "genes"
    seconds: float
    sites: dict[str, SiteRow]
    persons: dict[str, int]
    classes: dict[str, int]
    genes: int
    tested: int
    variants: int
    inflation: dict[str, float | None]
    left_out: dict[str, int]
    top: list[dict[str, Any]]
    methods: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Outcomes(Event):
    """Figures of an analysis of outcomes. ``analysis``: survival, glm or describe; ``found``: its main results, as in the tables of the
    run's folder."""

    kind = "outcomes"
    analysis: str
    seconds: float
    sites: dict[str, SiteRow]
    persons: dict[str, int]
    found: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class End(Event):
    """A run ended: ``status`` finished, failed or stopped, and why ("" if it finished)."""

    kind = "end"
    status: str
    reason: str


_ALL = (Start, Checks, Agreed, Round, Resumed, Privacy, Final, Step, Gwas, Genes, Frequencies, Outcomes, End)
KINDS: dict[str, type[Event]] = {kind.kind: kind for kind in _ALL}

# What stands for an event that has not come.
NOT_AGREED = Agreed(
    sites=[], persons={}, matching={}, variants=0, image_shape=[], disclosed=None, parameters=0, started=None, first_sha256=None,
    columns=None,
)  # fmt: skip
NO_PRIVACY = Privacy(unit="none", epsilon=None, delta=0.0, claims={}, sentence=None)
NO_FINAL = Final(round=0, weights_sha256="", metrics={}, groups={}, sites={}, refused={}, seconds=0.0, kept=None, meaning_sha256=None)
NOT_RESUMED = Resumed(round=0, status="", rounds_again=0, evaluations_again=0, code=Software(version="", sha256="", commit=""))
NO_END = End(status="unfinished", reason="")

# What a field holds that is not written.
_UNWRITTEN: dict[type[Event], dict[str, Any]] = {
    Start: {"code": None},
    Agreed: {"disclosed": None, "started": None, "first_sha256": None, "columns": None},
    Final: {"kept": None, "meaning_sha256": None},
    Privacy: {"epsilon": None, "delta": 0.0, "claims": {}, "sentence": None},
    Gwas: dict.fromkeys(("cases", "controls", "pca_variants", "pca_steps", "pca_columns", "pca_angle_rad", "eigenvalues")),
}


def to_row(event: Event) -> dict[str, Any]:
    """The event as a JSON object; NaN is not replaced yet (``fedml.runs.log.plain``)."""
    absent = event.absent()
    return {"event": event.kind, **{_key(f): getattr(event, f.name) for f in fields(event) if f.name not in absent}}


def body(event: Event) -> dict[str, Any]:
    """The fields of an event as they are written, without its kind and time."""
    return {key: value for key, value in to_row(event).items() if key not in ("event", "time")}


def from_row(row: Mapping[str, Any], *, schema: int, strict: bool) -> Event | None:
    """The event of one JSON object; None for an event that is not known, where that is not refused.

    Args:
        schema: version of the log, as its ``start`` has it.
        strict: refuse a version, an event or a field that is not known. A log that this software did not write is read so.

    Raises:
        ValueError: a field is missing; read strictly, as above. The message names it.
    """
    if strict and schema > SCHEMA:
        raise ValueError(f"the log is of version {schema}, this software reads up to {SCHEMA}; read it with a newer one")
    name = row.get("event")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        if strict and schema:
            raise ValueError(f'event "{name}" is not known (known: {", ".join(KINDS)})')
        return None
    given = lifted(kind.kind, row) if not schema else dict(row)
    values = dict(_UNWRITTEN.get(kind, {}))
    keys = {_key(f): f for f in fields(kind)}
    for key, value in given.items():
        if key in keys:
            values[keys[key].name] = value
        elif key != "event" and strict and schema:
            raise ValueError(f'event "{name}" has a field that is not known: {key}')
    for key, f in keys.items():
        if f.name not in values and (f.default is MISSING or (strict and schema)):
            raise ValueError(f'event "{name}" lacks the field {key}')
    event = kind(**values)
    if strict and schema and (lacking := to_row(event).keys() - row.keys()):  # what is unwritten elsewhere is written with these values
        raise ValueError(f'event "{name}" lacks the field {sorted(lacking)[0]}')
    return event


def _key(f: Any) -> str:
    return str(f.metadata.get("key", f.name))
