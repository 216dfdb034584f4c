"""Where a study names own code, and whether ``[code]`` has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedml.errors import nearest
from fedml.study.code_section import Code, OwnOptions, is_own, module_of
from fedml.study.cohort_section import Cohort
from fedml.study.imaging import OwnTransform
from fedml.study.sections import Evaluation, Model
from fedml.study.training_section import Training

RESERVED = ("all", "external", "groups", "persons", "sites", "test", "train", "val")  # keys around measures in a record


def own_names(cohort: Cohort, model: Model, training: Training, evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """(key of the study, ``module:name``) of each use of own code."""
    yield from ((key, name) for key, name, _ in own_options(cohort, model, training))
    yield from (("[evaluation] metrics", name) for name in evaluation.metrics)


def own_options(cohort: Cohort, model: Model, training: Training) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(key of the study, ``module:name``, options) of each use of own code that takes options."""
    for part in type(model).model_fields:
        network: Any = getattr(model, part)
        if isinstance(network, OwnOptions) and network.options is not None:
            yield f"[model] {part} net", vars(network)["net"], network.options
    if training.loss is not None and is_own(training.loss):
        yield "[training] loss", training.loss, training.loss_options
    for transform in _own_transforms(cohort):
        yield "[cohort.image] transforms", transform.name, transform.options


def _own_transforms(cohort: Cohort) -> list[OwnTransform]:
    return [transform for transform in (cohort.image.transforms if cohort.image is not None else ()) if transform.is_own]


def _lacking(module: str) -> str:
    return f"packages has no {module.partition('.')[0]}" if "." in module else f"files has no {module}.py"


def code_problems(code: Code | None, cohort: Cohort, model: Model, training: Training, evaluation: Evaluation) -> Iterator[str]:
    """What is wrong with own code and its names, as sentences."""
    known = [] if code is None else [*(file.module for file in code.modules), *(m for package in code.packages for m in package.modules)]
    used = list(own_names(cohort, model, training, evaluation))
    for key, name in used:
        if code is None or not code.digest_of(module_of(name)):
            yield f'{key} names "{name}", but [code] {_lacking(module_of(name))}{nearest(module_of(name), known)}; add it there'
    for transform in _own_transforms(cohort):
        if code is not None and module_of(transform.name) not in {file.module for file in code.modules}:
            yield f'[cohort.image] transforms: "{transform.name}" is in a package; name a file of [code] files, which may not use packages'
        elif code is not None and transform.sha256 != code.digest_of(module_of(transform.name)):
            yield f'[cohort.image] transforms: the sha256 of "{transform.name}" is not that of [code]; take the key away'
    if code is not None and not used:
        yield '[code] is given, but no key names its code; remove the section, or name it, such as net = "my_net:MyNet"'
    names = [name.partition(":")[2] for name in evaluation.metrics]
    for name in names:
        if name in RESERVED:
            yield f'[evaluation] metrics: "{name}" has a meaning in the record of a run; rename the function'
    if len(set(names)) < len(names):
        yield "[evaluation] metrics has two measures of the same name; rename one of the functions"
