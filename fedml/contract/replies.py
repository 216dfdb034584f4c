"""The form of every reply, by phase. The site's gate checks its own replies before they leave, and the server checks every reply before it
uses any part of it: a site whose reply has another form is named, and the run goes on without it. A reply of the right form can be false.

    describe    site (name), described (panel keys, image shape, persons by part and class; policy, digest of the data, excluded persons)
    voxels      voxels (histogram of raw intensities of training persons' images, number of persons: ``fedml.cohort.images.histograms``)
    statistics  sums (count, sum and sum of squares of each quantity, over training persons)
    round       arrays (trained), metrics (num-examples, loss-sum, seen, steps, train_loss), counts (of the model as it arrived), and what
                the study's algorithm returns (``fedml.contract.extras``)
    evaluate    counts (of the model as it arrived)
    analyses    analysis (sums, step by step: ``fedml.analytics.forms``)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedml.analytics.forms import check_section, reply_type
from fedml.cohort.images.histograms import BINS
from fedml.cohort.images.reasons import Unusable
from fedml.contract.disclosure import read_policy
from fedml.contract.extras import NO_EXTRAS, Extras, Shapes, check_records
from fedml.contract.witness import WITNESS, read_witness
from fedml.errors import Reason, SiteError
from fedml.modalities.registry import modalities_of
from fedml.study.section import PARTS
from fedml.study.study import Study
from fedml.tasks.registry import make_task
from fedml.wire.records import (
    ANALYSES,
    ANALYSIS,
    ARRAYS,
    COUNTS,
    DATASET,
    DESCRIBED,
    EXCLUDED,
    HISTOGRAM,
    JOURNAL,
    METRICS,
    NUM_EXAMPLES,
    PERSONS,
    POLICY,
    PRIVATE_METRICS,
    REPLY_METRICS,
    SITE,
    SUMS,
    VOXELS,
    Phase,
    array_record,
    config_record,
    holds,
    metric_record,
    unpack,
)

_MOST_VOXELS = 2.0**44
_dtype = lru_cache(maxsize=64)(np.dtype)
_RECORDS: dict[Phase, tuple[set[str], set[str]]] = {  # required records, optional records
    Phase.DESCRIBE: ({SITE, DESCRIBED}, set()),
    Phase.VOXELS: ({VOXELS}, set()),
    Phase.STATISTICS: ({SUMS}, set()),
    Phase.ROUND: ({ARRAYS, METRICS}, {COUNTS}),
    Phase.EVALUATE: ({COUNTS}, set()),
    **{phase: ({ANALYSIS}, set()) for phase in ANALYSES},
}


def check_form(study: Study, phase: Phase, name: str, reply: RecordDict, weights: Shapes | None, extras: Extras = NO_EXTRAS) -> None:
    """Raises ``SiteError`` unless ``reply`` has exactly the records of its phase, with the declared types and shapes, and finite numbers.

    Args:
        name: the site's name. weights: expected shapes of the arrays: of the study's model for a round, of the sums (``reply_shapes``) for
        an analysis. extras: the records that the study's algorithm returns.
    """
    must, may = _RECORDS[phase]
    must = must | extras.records.keys()
    if not must <= set(reply) <= must | may | {JOURNAL}:
        raise SiteError(Reason.UNDECLARED, f"the reply holds {sorted(reply)}, declared are {sorted(must | may)}")
    if JOURNAL in reply:
        _check_journal(reply)
    if phase is Phase.DESCRIBE:
        _check_described(study, name, reply)
    elif phase is Phase.VOXELS:
        _check_voxels(study, reply)
    elif phase is Phase.STATISTICS:
        _check_sums(study, reply)
    elif phase is Phase.ROUND:
        _check_trained(study, name, reply, weights or {})
        check_records(reply, extras)
    elif phase in ANALYSES:
        _check_analysis(study, phase, reply, weights or {})
    if COUNTS in reply:
        _check_counts(study, reply)


def read_arrays(content: RecordDict, name: str) -> dict[str, Any]:
    """Record ``name`` as arrays; ``SiteError`` if it is missing or cannot be read."""
    try:
        return unpack(array_record(content, name))
    except (KeyError, ValueError, TypeError) as error:
        raise SiteError(Reason.BAD_MESSAGE, f"{name} cannot be read: {error}") from error


def is_finite(value: Any) -> bool:
    """Whether all numbers are finite."""
    return value.dtype.kind != "f" or bool(np.isfinite(value).all())


def _check_journal(reply: RecordDict) -> None:
    record = dict(config_record(reply, JOURNAL)) if holds(reply, JOURNAL, ConfigRecord) else {}
    if not {"head", "count"} <= record.keys() <= {"head", "count", *WITNESS}:
        raise SiteError(Reason.UNDECLARED, "the journal's record has other keys than declared")
    try:
        read_witness(record)
    except ValueError as error:
        raise SiteError(Reason.UNDECLARED, str(error)) from error


def _check_described(study: Study, name: str, reply: RecordDict) -> None:
    if not holds(reply, SITE, ConfigRecord) or dict(config_record(reply, SITE)) != {"name": name}:
        raise SiteError(Reason.WRONG_NAME, "the site record does not have exactly the name of the site")
    values = read_arrays(reply, DESCRIBED)
    classes = len(make_task(study).person_classes) or 1
    if study.privacy.unit != "patient":  # under patient-level privacy persons are not counted
        persons = values.pop(PERSONS, None)
        _shaped(persons, "int64", (len(PARTS), classes), PERSONS)
        if persons is not None and (persons < 0).any():
            raise SiteError(Reason.UNDECLARED, "persons has a negative count")
    declared = [modality.declared() for modality in modalities_of(study)]
    of_input = {key: wrong for keys in declared for key, wrong in keys.items()}
    for key, value in values.items():
        if key in of_input:
            if why := of_input[key](value):
                raise SiteError(Reason.UNDECLARED, f"{key} {why}")
        elif key == POLICY:
            try:
                read_policy(value)
            except ValueError as error:
                raise SiteError(Reason.UNDECLARED, str(error)) from error
        elif key == DATASET and study.privacy.unit != "patient":
            _shaped(value, "uint8", (32,), key)
        elif key == EXCLUDED and study.privacy.unit != "patient":
            _shaped(value, "int64", (len(Unusable),), key)
        else:
            raise SiteError(Reason.UNDECLARED, "described holds a key that is not declared")
    for keys in declared:
        if 0 < len(keys.keys() & values.keys()) < len(keys):
            raise SiteError(Reason.UNDECLARED, f"an input is described in part: some of {', '.join(keys)} are missing")


def _check_analysis(study: Study, phase: Phase, reply: RecordDict, shapes: Shapes) -> None:
    check_section(study, phase)
    values = read_arrays(reply, ANALYSIS)
    if values.keys() != shapes.keys():
        raise SiteError(Reason.UNDECLARED, "the names of the sums differ from those of this step")
    for key, value in values.items():
        _shaped(value, reply_type(phase, key), shapes[key], key)
        if not is_finite(value):
            raise SiteError(Reason.NON_FINITE, f"{key} is not finite")


def _check_voxels(study: Study, reply: RecordDict) -> None:
    if study.cohort.image is None or not study.cohort.image.percentiles:
        raise SiteError(Reason.UNDECLARED, "the study has no percentiles")
    values = read_arrays(reply, VOXELS)
    if values.keys() != {HISTOGRAM, PERSONS}:
        raise SiteError(Reason.UNDECLARED, "voxels must be a histogram and a number of persons")
    for key, size in ((HISTOGRAM, BINS), (PERSONS, 1)):
        _shaped(values[key], "int64", (size,), key)
        if (values[key] < 0).any():
            raise SiteError(Reason.NON_FINITE, f"{key} has a negative count")
    if float(values[HISTOGRAM].sum(dtype=np.float64)) > _MOST_VOXELS:  # so that no roster's sum leaves 64 bits
        raise SiteError(Reason.NON_FINITE, f"the histogram has more than {_MOST_VOXELS:g} voxels")


def _check_sums(study: Study, reply: RecordDict) -> None:
    declared = {f"preprocess.{name}" for name in study.cohort.inputs if name not in study.cohort.by_site}
    declared |= {"target"} if study.traits.standardised else set()
    for key, value in read_arrays(reply, SUMS).items():
        if key not in declared:
            raise SiteError(Reason.UNDECLARED, "sums hold a key that is not declared")
        _shaped(value, "float64", (3, None), SUMS)
        if not is_finite(value):
            raise SiteError(Reason.NON_FINITE, "a sum is not finite")


def _check_trained(study: Study, name: str, reply: RecordDict, weights: Shapes) -> None:
    arrays = read_arrays(reply, ARRAYS)
    if arrays.keys() != weights.keys():
        raise SiteError(Reason.UNDECLARED, "the names of the arrays differ from those of the study's model")
    for key, value in arrays.items():
        _shaped(value, "float32", weights[key], "an array")
        if not is_finite(value):
            raise SiteError(Reason.NON_FINITE, f"{key} is not finite")
    metrics = dict(metric_record(reply, METRICS)) if holds(reply, METRICS, MetricRecord) else {}
    private = study.privacy.unit == "patient"
    declared = PRIVATE_METRICS if private else REPLY_METRICS
    if metrics.keys() != declared.keys() or any(type(metrics[k]) is not kind for k, kind in declared.items()):
        raise SiteError(Reason.UNDECLARED, "the metrics differ from the declared ones")
    if not np.isfinite([float(str(v)) for v in metrics.values()]).all() or int(str(metrics[NUM_EXAMPLES])) < 0:
        raise SiteError(Reason.NON_FINITE, "a metric is not finite, or the number of persons is negative")
    if private and metrics[NUM_EXAMPLES] != study.privacy.persons[name]:
        raise SiteError(Reason.UNDECLARED, "num-examples differs from [privacy] persons of the study")


def _check_counts(study: Study, reply: RecordDict) -> None:
    task = make_task(study)
    labels = {label for group in study.evaluation.labels().values() for label in group}
    for key, value in read_arrays(reply, COUNTS).items():
        part, _, name = key.partition("/")
        part, _, label = part.partition("@")  # "test@sex:1/histogram": of a subgroup
        if label and (part != "test" or label not in labels):
            raise SiteError(Reason.UNDECLARED, "counts hold a group that is not declared")
        if part not in ("val", "test") or name not in task.fields:
            raise SiteError(Reason.UNDECLARED, "counts hold a key that is not declared")
        dtype, shape = task.fields[name]
        _shaped(value, dtype, shape, name)
        if not is_finite(value):
            raise SiteError(Reason.NON_FINITE, f"{name} is not finite")
        if label and ((coarse := task.coarse({name: value}).get(name)) is None or (value != coarse).any()):
            raise SiteError(Reason.UNDECLARED, f"a subgroup's {name} has more bins than are allowed, or is not declared")


def _shaped(value: Any, dtype: str, shape: tuple[int | None, ...], what: str) -> None:
    fits = value is not None and value.dtype == _dtype(dtype) and value.ndim == len(shape)
    if not fits or any(want is not None and have != want for have, want in zip(value.shape, shape, strict=True)):
        raise SiteError(Reason.UNDECLARED, f"{what} has another shape or type than declared")
