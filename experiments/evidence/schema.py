"""The closed form of a run's log in a bundle: which events there are, in which order, with which keys, types and ranges.

    problems = list(wrong_log(files["events.jsonl"]))          # sentences; empty: the log has this form

A log with an event, a key or a value that is not listed here fails. So does one that is written in another way than the run writes it, such
as with a key that is there twice, of which two readers would read two values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedml.contract.disclosure import DisclosedPolicy
from fedml.errors import Reason
from fedml.wire.records import ANALYSES

_MOST_LINES = 100_000
_Count = Annotated[int, Field(ge=0, le=2**53)]
_Sha = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Commit = Annotated[str, Field(pattern=r"^(|none|[0-9a-f]{40}(\+changes)?|[0-9a-f]{64}(\+changes)?)$")]
_Name = Annotated[str, Field(min_length=1, max_length=200)]
_Text = Annotated[str, Field(max_length=4000)]
_Version = Annotated[str, Field(pattern=r"^(absent|[0-9A-Za-z][0-9A-Za-z.+!_-]{0,63})$")]
_Seconds = Annotated[float, Field(ge=0, le=10 * 365 * 86_400)]
_Time = Annotated[float, Field(gt=0)]
_Finite = Annotated[float, Field()]
_Positive = Annotated[float, Field(ge=0)]
_Reason = Annotated[str, Field(pattern=f"^({'|'.join(Reason)})$")]
_Round = Annotated[int, Field(ge=0, le=10**6)]


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Wheel(_Form):
    record_sha256: _Sha
    edited: bool


class _Code(_Form):
    version: _Version
    sha256: _Sha
    commit: _Commit
    wheel: _Wheel | None = None


class _Start(_Form):
    event: Literal["start"]
    time: _Time
    log_schema: Literal[1] = Field(alias="schema")
    run_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,120}$")]
    study: _Name
    study_sha256: _Sha
    git_commit: _Commit
    seed: int
    versions: dict[_Name, _Version]
    engine: Literal["local", "simulation", "deployment"]
    job: Literal["train", "evaluate"]
    code: _Code | None = None


class _Check(_Form):
    site: _Name
    check: _Name
    value: _Text
    verdict: Literal["ok", "warn", "fail"]
    fix: _Text


class _Checks(_Form):
    event: Literal["checks"]
    time: _Time
    checks: list[_Check]


class _Policy(DisclosedPolicy):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Disclosed(_Form):
    policy: _Policy | None
    dataset: _Sha | None
    quarantined: dict[_Name, Annotated[int, Field(ge=-1, le=2**31)]] | None


class _Persons(_Form):
    train: list[_Count]
    val: list[_Count]
    test: list[_Count]


class _Column(_Form):
    known: _Count
    mean: _Finite | None
    sd: _Positive | None


class _Agreed(_Form):
    event: Literal["agreed"]
    time: _Time
    sites: list[_Name]
    persons: dict[_Name, _Persons]
    matching: dict[_Name, dict[_Name, _Count]]
    variants: _Count
    image_shape: list[Annotated[int, Field(ge=1, le=2**20)]]
    disclosed: dict[_Name, _Disclosed]
    parameters: _Count
    started: list[_Name] | None = None
    first_sha256: _Sha | None = None
    columns: dict[_Name, dict[_Name, _Column]] | None = None


class _Signed(_Form):
    key: _Text
    signature: _Text
    run: Annotated[str, Field(pattern=r"^\d{1,20}$")]
    agreement: _Sha
    weights: _Sha
    counts: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    reply: _Sha


class _Site(_Form):
    bytes_out: _Count
    bytes_in: _Count
    journal: Annotated[list[Any], Field(min_length=2, max_length=2)] | None
    witness: _Signed | None = None


class _Trained(_Site):
    train_loss: _Finite | None
    seen: Annotated[float, Field(ge=0, le=2**53)]
    seconds: _Seconds
    update_norm: _Positive | None


_Metrics = dict[_Name, _Finite | None]


class _Group(_Form):
    all: _Metrics
    sites: dict[_Name, _Metrics]


class _Part(_Group):
    worst: _Name | None


_Parts = dict[Literal["train", "val", "test", "external"], _Part]


class _RoundEvent(_Form):
    event: Literal["round"]
    time: _Time
    round: _Round
    seconds: _Seconds
    metrics: _Parts
    sites: dict[_Name, _Trained]
    refused: dict[_Name, _Reason]


class _Resumed(_Form):
    event: Literal["resumed"]
    time: _Time
    round: _Round
    status: Literal["killed", "failed", "stopped"]
    rounds_again: _Count
    evaluations_again: _Count
    code: _Code


class _Claim(_Form):
    unit: Literal["person", "site"]
    adjacency: _Name
    epsilon: _Positive | None
    delta: Annotated[float, Field(gt=0, lt=1)]
    covers: list[_Text]
    not_covered: list[_Text]
    events_json: str
    epsilon_rdp: _Positive | None
    sentence: str


class _NoPrivacy(_Form):
    event: Literal["privacy"]
    time: _Time
    unit: Literal["none"]


class _Privacy(_Form):
    event: Literal["privacy"]
    time: _Time
    unit: Literal["patient", "site"]
    epsilon: _Positive | None
    delta: Annotated[float, Field(ge=0, lt=1)]
    claims: dict[str, _Claim]
    sentence: str | None


class _Final(_Form):
    event: Literal["final"]
    time: _Time
    round: _Round
    weights_sha256: _Sha
    metrics: _Parts
    groups: dict[_Name, _Group]
    sites: dict[_Name, _Site]
    refused: dict[_Name, _Reason]
    seconds: _Seconds
    kept: _Round | None = None
    meaning_sha256: _Sha | None = None


class _End(_Form):
    event: Literal["end"]
    time: _Time
    status: Literal["finished"]
    reason: Literal[""]


class _Machine(_Form):
    python: _Version
    implementation: _Name
    system: _Name
    machine: _Name
    code_sha256: _Sha
    packages: dict[_Name, _Version]


class Versions(_Form):
    """versions.json."""

    run: dict[_Name, _Version]
    bundle: _Machine


class _Canaries(_Form):
    unit: Literal["patient", "site"]
    epsilon: _Positive
    estimate: _Finite | None
    confidence: Annotated[float, Field(gt=0, lt=1)]
    correct: _Count
    guesses: _Count
    canaries: _Count
    delta: Annotated[float, Field(gt=0, lt=1)]
    rounds: _Count
    seed: int
    noise_multiplier: dict[str, _Positive]
    included: list[Annotated[int, Field(ge=0, le=1)]]
    scores: list[_Finite]
    study_sha256: _Sha
    seconds: _Seconds


class Audit(_Form):
    """audit.json."""

    audit: _Canaries | None = None
    noise_off: _Canaries | None = None


class _StartOfAnalysis(_Start):
    job: Literal["gwas", "survival", "glm", "describe"]  # type: ignore[assignment]


class _AgreedOfAnalysis(_Form):
    event: Literal["agreed"]
    time: _Time
    sites: list[_Name]
    persons: dict[_Name, _Persons]
    matching: dict[_Name, dict[_Name, _Count]]
    variants: _Count
    image_shape: Annotated[list[int], Field(max_length=0)]
    parameters: Literal[0]


class _Progress(_Form):
    event: Literal["step"]
    time: _Time
    doing: _Text
    done: _Count
    total: _Count | None
    log: bool


class _Results(BaseModel):
    """The figures of an analysis: their keys and values are those that are computed again from the sums."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    event: Literal["gwas", "outcomes"]
    time: _Time
    seconds: _Seconds
    sites: dict[_Name, _Site]
    persons: dict[_Name, _Count]


class _Step(_Form):
    phase: Annotated[str, Field(pattern=f"^({'|'.join(sorted(ANALYSES))})$")]
    number: _Count
    sites: dict[_Name, _Site]


_FORMS: dict[str, tuple[type[_Form], ...]] = {
    "start": (_Start,), "checks": (_Checks,), "agreed": (_Agreed,), "round": (_RoundEvent,), "resumed": (_Resumed,),
    "privacy": (_NoPrivacy, _Privacy), "final": (_Final,), "end": (_End,),
}  # fmt: skip
_OF_ANALYSIS: dict[str, tuple[type[BaseModel], ...]] = {
    "start": (_StartOfAnalysis,), "checks": (_Checks,), "agreed": (_AgreedOfAnalysis,), "step": (_Progress,), "gwas": (_Results,),
    "outcomes": (_Results,), "end": (_End,),
}  # fmt: skip
_ORDER = ("start", "checks", "agreed", "round", "privacy", "final", "end")
_REPEATED = ("checks", "round", "step")
_ONLY = ("gwas", "outcomes")  # of which an analysis has one
_ANYWHERE = "resumed"  # between the first event and the last


def wrong_log(raw: bytes, result: str = "") -> Iterator[str]:
    """What is wrong with the bytes of events.jsonl of a finished run, as sentences. ``result``: the event that an analysis ends with."""
    forms = {k: v for k, v in _OF_ANALYSIS.items() if k not in _ONLY or k == result} if result else dict(_FORMS)
    order = tuple(forms) if result else _ORDER
    lines = raw.split(b"\n")
    if lines[-1:] != [b""] or len(lines) > _MOST_LINES:
        yield "does not end with a line end, or has more lines than a run writes"
        return
    kinds = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield f"line {number} is not JSON"
            return
        if not isinstance(row, dict) or json.dumps(row, allow_nan=True).encode() != line:
            yield f"line {number} is not as a run writes it: a key is there twice, or it is written in another way"
            return
        kind = row.get("event")
        if kind not in forms:
            yield f"line {number} has the event {_shown(kind)}, which no finished {'analysis' if result else 'training'} has"
            return
        if why := wrong_row(row, forms):
            yield f"line {number}, {kind}: {why}"
        kinds.append(str(kind))
    if _ANYWHERE in (*kinds[:1], *kinds[-1:]):
        yield "begins or ends with a run that goes on"
    kinds = [kind for kind in kinds if kind != _ANYWHERE]
    places = [order.index(kind) for kind in kinds]
    if places != sorted(places) or any(kinds.count(kind) != 1 for kind in order if kind not in _REPEATED):
        yield f"its events are not one {', one '.join(k for k in order if k not in _REPEATED)} in this order"


def wrong_steps(raw: bytes) -> Iterator[str]:
    """What is wrong with the bytes of steps.jsonl, as sentences."""
    lines = raw.split(b"\n")
    if lines[-1:] != [b""] or len(lines) > _MOST_LINES:
        yield "does not end with a line end, or has more lines than a run writes"
        return
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield f"line {number} is not JSON"
            return
        if json.dumps(row).encode() != line:
            yield f"line {number} is not as a run writes it: a key is there twice, or it is written in another way"
        elif why := wrong_form(_Step, row):
            yield f"line {number}: {why}"
        elif any("witness" in own and own["witness"] is None for own in row["sites"].values()):
            yield f"line {number}: witness is null, which is not written"


def wrong_row(row: dict[str, Any], known: Mapping[str, tuple[type[BaseModel], ...]] | None = None) -> str:
    """What is wrong with one event, of those ``known``; "" if nothing is."""
    forms = (known or _FORMS)[str(row["event"])]
    form = forms[0] if len(forms) == 1 or row.get("unit") == "none" else forms[1]
    if why := wrong_form(form, row):
        return why
    # A field that is not written where it is None is not written as null either.
    if empty := [
        name for name in ("code", "started", "first_sha256", "columns", "kept", "meaning_sha256") if name in row and row[name] is None
    ]:
        return f"{empty[0]} is null, which is not written"
    return ""


def _shown(value: object) -> str:
    return repr(value)[:60]


def wrong_form(form: type[BaseModel], value: Any) -> str:
    """Why ``value``, read from JSON, has not the form; "" if it has."""
    try:
        form.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))[:120]}: {first['msg']}"
    return ""
