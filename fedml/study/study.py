"""The study: one declarative plan, read from TOML, validated, frozen, hashed. It determines every request to a site.

    study = read_study(Path("heart.toml"), overrides={"strategy.name": "fedprox"}, seed=3)
    study.sha256                      # its identity, everywhere

A key that is not known, a value of the wrong type or a combination that cannot work raises ``InputError`` with the file, the key,
what was expected and the nearest valid spelling.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, Self, TypeVar

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from fedml.errors import InputError, nearest
from fedml.study import limits
from fedml.study.augmented import augment_problems
from fedml.study.code_section import Code, gather_options
from fedml.study.cohort_section import Cohort, target_problems
from fedml.study.federation_section import Federation
from fedml.study.frequencies_section import Frequencies, frequencies_problems
from fedml.study.gwas_section import Gwas
from fedml.study.outcome_rules import outcome_problems
from fedml.study.outcomes_section import Describe, Glm, Treatment
from fedml.study.own_names import code_problems
from fedml.study.parameters import check_parameters
from fedml.study.problems import first_problem
from fedml.study.section import Section
from fedml.study.sections import About, Evaluation, Model, Policy, Privacy, Strategy, TableNetwork
from fedml.study.survival_section import Survival
from fedml.study.task_traits import TRAITS, TaskTraits, either, traits_of
from fedml.study.training_section import Training, training_problems, wire_problems

Kind = TypeVar("Kind", bound=BaseModel)
# Sections that came later: the hash of a study without them is unchanged.
_LATER = ("code", "survival", "frequencies", "glm", "treatment", "describe")


class Study(Section):
    """A whole study, frozen. Build it with ``read_study`` or ``parse_study``."""

    study: About = Field(description="name, research question, permitted use and seed of the study")
    cohort: Cohort = Field(description="inputs and target of each person, and the split into training, validation and test persons")
    model: Model = Field(default=Model(), description="task, one encoder for each input, and the fusion of their outputs")
    training: Training = Field(default=Training(), description="one site's work in one round")
    federation: Federation = Field(description="sites that take part, rounds, and how many answers a round needs")
    strategy: Strategy = Field(default=Strategy(), description="how the sites' models become the next model")
    privacy: Privacy = Field(default=Privacy(), description="differential privacy: its unit, noise and cost")
    policy: Policy = Field(default=Policy(), description="limits of the study; a site has limits too, and the stricter one holds")
    evaluation: Evaluation = Field(default=Evaluation(), description="subgroups of test persons with metrics of their own")
    code: Code | None = Field(default=None, description="the study's own code, pinned by hash; default: the study has none")
    gwas: Gwas | None = Field(default=None, description="association of the target with each variant (fedml gwas); default: no association")
    survival: Survival | None = Field(default=None, description="grid of times and horizons of a target that is the time to an event")
    frequencies: Frequencies | None = Field(default=None, description="allele frequencies (fedml frequencies); default: none")
    glm: Glm | None = Field(default=None, description="regression of the target on clinical columns (fedml glm); default: none")
    treatment: Treatment | None = Field(default=None, description="comparison of two treatments (fedml glm); default: none")
    describe: Describe | None = Field(default=None, description="table of the persons (fedml describe); default: none")

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if value is not None or key not in _LATER}

    @property
    def times(self) -> Survival:
        """``[survival]``.

        Raises:
            ValueError: the study has none.
        """
        if self.survival is None:
            raise ValueError('[survival] is missing; add it with time_unit = "days", grid = "30 days" and until = NUMBER')
        return self.survival

    @property
    def traits(self) -> TaskTraits:
        """The requirements of the task on other sections."""
        return traits_of(self.model.task)

    @model_validator(mode="after")
    def _association(self) -> Self:
        """The requirements of ``[gwas]`` and ``[cohort.variants]`` on other sections."""
        spec = self.cohort.clinical
        if self.privacy.unit != "none" and self.cohort.variants.counted:
            raise ValueError(
                "[cohort.variants] thresholds need exact counts of genotypes, which a private study does not release; leave them"
            )
        if self.model.variants.l1 and (self.training.optimizer != "sgd" or self.training.momentum):
            raise ValueError('[model] variants l1 needs [training] optimizer = "sgd" without momentum; others reach another minimum')
        if self.gwas is None:
            return self
        if "variants" not in self.cohort.inputs:
            raise ValueError('[gwas] needs variants: add "variants" to [cohort] inputs')
        if self.traits.gwas is None:
            known = either([name for name, traits in TRAITS.items() if traits.gwas is not None])
            raise ValueError(f"[gwas] needs a number or two classes as target; set [model] task = {known}")
        if self.federation.evaluate_only:
            raise ValueError("[gwas] trains no model that [federation] evaluate_only could test; leave evaluate_only out")
        if self.cohort.standardise != "all":
            raise ValueError(f'[gwas] adjusts for covariates in their own units; remove [cohort] standardise = "{self.cohort.standardise}"')
        if self.privacy.unit != "none":
            raise ValueError('[gwas] releases exact sums, so it needs [privacy] unit = "none"; a private association is not built')
        if self.traits.gwas == "logistic" and len(self.cohort.classes) != 2:
            raise ValueError(f"[gwas] compares two classes, [cohort] classes lists {len(self.cohort.classes)}")
        columns = spec.columns if spec is not None else ()
        for name in self.gwas.covariates:
            if name not in columns:
                raise ValueError(f'[gwas] covariates names "{name}", which is not a column of [cohort.clinical]{nearest(name, columns)}')
        return self

    @model_validator(mode="after")
    def _size(self) -> Self:
        """Limits of products of keys, work and weights of the whole study; what ``[training]`` needs of other sections."""
        rounds, unit, label = self.federation.rounds, self.privacy.unit, self.traits.label
        trained = training_problems(self.training, rounds=rounds, unit=unit, label=label, classes=len(self.cohort.classes))
        for problem in (*trained, *wire_problems(self.federation.wire, unit)):
            raise ValueError(problem)
        if limits.values_of(self.model.segmentation.window) > limits.VOXELS:
            raise ValueError(f"[model] segmentation window has more than {limits.VOXELS:,} voxels")
        check_parameters(self.model, self.cohort)
        return self

    @model_validator(mode="after")
    def _own_code(self) -> Self:
        """Own code is in ``[code]``, and what speaks against it; and what speaks against ``[frequencies]`` and analyses of outcomes."""
        lookup = frequencies_problems(self.frequencies, self.cohort, self.privacy, self.federation, association=self.gwas is not None)
        times = self.survival
        asked: dict[str, Section | None] = {"survival.curves": times and times.curves, "survival.cox": times and times.cox}
        asked |= {"glm": self.glm, "treatment": self.treatment, "describe": self.describe}
        variants = self.gwas is not None or self.frequencies is not None
        outcomes = outcome_problems(asked, self.cohort, self.privacy, self.federation, label=self.traits.label, variants=variants)
        for problem in (
            *lookup,
            *outcomes,
            *code_problems(self.code, self.cohort, self.model, self.training, self.evaluation),
        ):
            raise ValueError(problem)
        if self.cohort.cluster is not None and (self.privacy.unit == "patient" or self.gwas is not None or self.frequencies is not None):
            raise ValueError(
                '[cohort] cluster is built for studies that train a model without [privacy] unit = "patient", which protects one person '
                "and not those who belong together; remove cluster"
            )
        if self.code is not None and self.privacy.unit == "patient":
            raise ValueError(
                '[code] is not built for [privacy] unit = "patient", whose epsilon would rest on unproved code; set unit = "site" or "none"'
            )
        return self

    @model_validator(mode="after")
    def _omics(self) -> Self:
        """The requirements of ``[cohort.omics]`` and ``[model] omics`` on each other and on ``[privacy]``."""
        spec = self.cohort.omics
        if spec is None:
            if self.model.omics is not None:
                raise ValueError('[model] omics is given but [cohort] inputs does not list "omics"')
            return self
        if self.privacy.unit != "none" and spec.range is None:
            raise ValueError("[cohort.omics] range is missing, a private study needs it; state plausible values, such as range = [-4, 4]")
        if self.model.omics is None:  # set explicitly, so that the study's hash covers it
            object.__setattr__(self, "model", self.model.model_copy(update={"omics": TableNetwork()}))
        return self

    @model_validator(mode="after")
    def _radiomics(self) -> Self:
        """``[model] radiomics`` goes with ``[cohort.radiomics]``."""
        if self.cohort.radiomics is None and self.model.radiomics is not None:
            raise ValueError('[model] radiomics is given but [cohort] inputs does not list "radiomics"')
        if self.cohort.radiomics is not None and self.model.radiomics is None:  # set explicitly, so that the study's hash covers it
            object.__setattr__(self, "model", self.model.model_copy(update={"radiomics": TableNetwork()}))
        return self

    @model_validator(mode="after")
    def _task(self) -> Self:
        """The rules of the task for other sections."""
        task, traits, unit = self.model.task, self.traits, self.privacy.unit
        for problem in target_problems(self.cohort, traits.label, task):
            raise ValueError(problem)
        if traits.label == "time":
            _ = self.times
        elif self.survival is not None:
            raise ValueError(f'[survival] is for times to an event, which [model] task = "{task}" does not predict; remove it')
        if traits.inputs is not None and self.cohort.inputs != traits.inputs:
            raise ValueError(f'[model] task = "{task}" is built only for these inputs; set [cohort] inputs = {json.dumps(traits.inputs)}')
        if unit not in traits.units:
            raise ValueError(
                f'[model] task = "{task}" is not built for unit = "{unit}"; set [privacy] unit = {either(list(traits.units[::-1]))}'
            )
        if traits.label == "mask" and unit == "site" and self.model.segmentation.norm == "batch":
            raise ValueError('[model] segmentation norm = "batch" mixes persons, which no privacy allows; set norm = "instance"')
        return self

    @model_validator(mode="after")
    def _bags(self) -> Self:
        """What slides, and attention over a person's images, need of the other sections."""
        network, patient, masks = self.model.image, self.privacy.unit == "patient", self.traits.label == "mask"
        if network.pooling == "attention" and (patient or masks):
            where = '[privacy] unit = "patient"' if patient else f'[model] task = "{self.model.task}"'
            raise ValueError(f'[model] image pooling = "attention" is not built for {where}; set pooling = "mean"')
        if self.cohort.image is None or self.cohort.image.tiles is None:
            return self
        if masks:
            known = either([name for name, traits in TRAITS.items() if traits.label != "mask"])
            raise ValueError(f"[cohort.image] tiles have no masks; set [model] task = {known}")
        if patient:
            raise ValueError('[cohort.image] tiles are not built for [privacy] unit = "patient"; set unit = "site" or "none"')
        if self.cohort.image.encoded and network.net not in ("cnn", "mlp") and ":" not in network.net:
            text = "reads pixels, and with [cohort.image.tiles.encoder] the model reads features; leave net out"
            raise ValueError(f'[model] image net = "{network.net}" {text}')
        if self.cohort.image.encoded and network.net == "cnn":  # set explicitly, so that the study's hash covers what is trained
            image = network.model_copy(update={"net": "mlp"})
            object.__setattr__(self, "model", self.model.model_copy(update={"image": image}))
        if network.norm == "batch":
            raise ValueError('[model] image norm = "batch" would depend on how tiles are read together; set norm = "group"')
        return self

    @model_validator(mode="after")
    def _augmented(self) -> Self:
        """What ``[training.augment]`` and random transforms need of the other sections."""
        for problem in augment_problems(self.training.augment, self.cohort.image, self.privacy.unit):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _private_plan(self) -> Self:
        """The requirements of differential privacy on other sections."""
        plan = self.privacy
        if plan.unit == "none":
            return self
        if self.cohort.standardise == "site":
            raise ValueError('[cohort] standardise = "site" computes with exact means of persons; a private study states ranges: remove it')
        if self.cohort.standardise == "centre":
            raise ValueError('[cohort] standardise = "centre" is not built for a private study, whose ranges scale numbers: remove it')
        most = max(plan.persons.values(), default=1) if plan.unit == "patient" else len(self.federation.training)
        if most > 1 and plan.delta >= 1 / most:
            raise ValueError(
                f"[privacy] delta is {plan.delta:g}; it must be below 1 / {most}: a mechanism that publishes one of {most} completely has "
                "that delta; 1e-5 is usual"
            )
        most_steps = min(limits.PRIVATE_STEPS, int(plan.delta * limits.STEPS_PER_DELTA))
        if (steps := self._private_steps()) > most_steps:
            raise ValueError(
                f"[federation] rounds, [training] {self.training.length_keys} give {steps:,} steps with noise, the limit is {most_steps:,} "
                f"at [privacy] delta = {plan.delta:g}"
            )
        if plan.unit == "patient" and self.evaluation != Evaluation():
            raise ValueError('[evaluation] releases exact counts of groups, which unit = "patient" does not allow; remove [evaluation]')
        if self.cohort.image is not None and self.cohort.image.percentiles:
            raise ValueError(f'[cohort.image] percentiles count voxels exactly, which unit = "{plan.unit}" does not allow; state a window')
        spec, columns = self.cohort.clinical, tuple[str, ...]()
        if spec is not None:
            columns = tuple(c for c in spec.columns if c not in spec.categories)
        needed = [*columns, *([self.cohort.outcome] if self.traits.standardised else [])]
        lacking = [c for c in needed if c not in plan.ranges]
        if lacking:
            some = ", ".join(lacking[:10]) + (f" and {len(lacking) - 10} more" if len(lacking) > 10 else "")
            pattern = '; ranges = { "*_rnaseq" = [-4, 4] } is for each column by pattern that it matches' if len(lacking) > 10 else ""
            raise ValueError(f"[privacy] ranges lacks {some}: state plausible values, such as ranges = {{ age = [18, 100] }}{pattern}")
        unknown = [c for c in plan.ranges if c not in needed]
        if unknown:
            raise ValueError(f"[privacy] ranges names {unknown[0]}, which is no numeric column of the study{nearest(unknown[0], needed)}")
        if "image" in self.cohort.inputs and self.model.image.norm == "batch":
            raise ValueError('[model] image norm = "batch" mixes persons, which no privacy of one allows; set norm = "group"')
        if plan.unit == "site" and self.strategy.options.get("weighting") == "persons":
            raise ValueError(
                '[strategy] weighting = "persons" makes a site\'s influence grow with its size; with unit = "site" set weighting = "equal"'
            )
        if plan.unit == "patient" and self.training.precision != "float32":
            raise ValueError('[training] precision is float32 under unit = "patient": a gradient is clipped exactly; take the key away')
        if plan.unit == "patient" and set(plan.persons) != set(self.federation.training):
            wrong = sorted(set(plan.persons) ^ set(self.federation.training))
            raise ValueError(
                f"[privacy] persons must name every site that trains and no other (here: {wrong[0]}), "
                "such as persons = { oslo = 800 }: about how many training persons it has"
            )
        if plan.metrics == "private" and not self.traits.private_metrics:
            known = either([name for name, traits in TRAITS.items() if traits.private_metrics])
            raise ValueError(f'[privacy] metrics = "private" is built for [model] task = {known}; set metrics = "exact"')
        if plan.unit == "site" and plan.persons:
            raise ValueError('[privacy] persons goes with unit = "patient"')
        return self

    def _private_steps(self) -> int:
        """The largest number of noised sums about one site or one of its persons, evaluations and statistics included."""
        rounds, work = self.federation.rounds, self.training
        if self.privacy.unit == "site":
            return rounds
        steps = max((-(-persons // min(work.batch_size or persons, persons)) for persons in self.privacy.persons.values()), default=1)
        return max(rounds * (work.local_steps or work.local_epochs * steps), rounds) + 2

    @cached_property
    def canonical(self) -> str:
        """Canonical JSON: every key with its value (defaults too), keys sorted, no spaces, ASCII."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the canonical JSON, hexadecimal: the study's identity."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    @property
    def split_key(self) -> str:
        """Key of the hash that puts a person into a part."""
        return self.cohort.split_key or f"seed-{self.study.seed}"

    def __hash__(self) -> int:
        return hash(self.canonical)

    def __eq__(self, other: object) -> bool:
        """By the canonical text, which holds every key; but a copy ``without_transforms`` keeps the text of its original."""
        if self is other:
            return True
        return isinstance(other, Study) and self.canonical == other.canonical and self.cohort.image == other.cohort.image


def parse_study(text: str) -> Study:
    """A study from canonical JSON, as a site receives it.

    Raises:
        InputError: the text is no valid study.
    """
    if found := limits.text_problem(text, limits.TEXT_BYTES):
        raise InputError(f"study: {found}.")
    try:
        plan = json.loads(text)
    except RecursionError as error:
        raise InputError("study: is nested too deeply.") from error
    except ValueError as error:  # not JSON, or a number of more digits than Python reads
        raise InputError(f"study: is not JSON: {error}.") from error
    return validate(Study, plan, "study")


shared_study = lru_cache(maxsize=8)(parse_study)  # the same object for the same text, so that what is kept for a study is found at once


@lru_cache(maxsize=8)
def without_transforms(study: Study) -> Study:
    """``study`` with the same identity, whose images are read without transforms of own code: the same persons, in the same parts."""
    image = study.cohort.image
    if image is None or not any(transform.is_own for transform in image.transforms):
        return study
    _ = study.sha256  # kept in the copy
    plain = image.model_copy(update={"transforms": tuple(t for t in image.transforms if not t.is_own), "crop": True})
    return study.model_copy(update={"cohort": study.cohort.model_copy(update={"image": plain})})


def for_roster(study: Study, sites: Sequence[str], **federation: Any) -> Study:
    """The same study for other sites, of which all must answer; a site that it did not name (``pooled``) stands for all of its own.

    The split of persons stays as it is where its key is the study's seed. ``federation`` changes other keys of that section; with other
    ``rounds`` the keys of ``[training]`` that are about the rounds are left out.
    """
    plan = study.model_dump(mode="json")
    only = [site for site in study.federation.evaluate_only if site in sites]
    plan["federation"] |= {"sites": list(sites), "quorum": 0, "quorum_persons": 0, "evaluate_only": only, **federation}
    for key in ("schedule", "keep", "patience") if "rounds" in federation else ():
        plan["training"].pop(key, None)
    stated = plan["privacy"]["persons"]
    if stated:
        plan["privacy"]["persons"] = {site: stated.get(site, sum(stated.values())) for site in sites if site not in only}
    return parse_study(json.dumps(plan))


def validate(kind: type[Kind], plan: Any, file: str) -> Kind:
    """``plan`` as a ``kind``; an error becomes one sentence that names ``file`` and the key.

    Raises:
        InputError: as above; the message has the first error and the number of the others.
    """
    if found := limits.value_problem(plan):
        raise InputError(f"{file}: {found}.")
    plan = gather_options(plan) if kind is Study else plan
    try:
        # Through JSON, because strict validation accepts a JSON array for a tuple and 1 for a float.
        text = json.dumps(plan, default=str)
        if found := limits.text_problem(text, limits.TEXT_BYTES):  # with the genes and features of other files
            raise InputError(f"{file}: {found}; list fewer variants, genes and features.")
        return kind.model_validate_json(text)
    except (RecursionError, OverflowError, ValueError) as error:
        if isinstance(error, ValidationError):
            raise InputError(f"{file}: {first_problem(kind, error)}") from None
        raise InputError(f"{file}: is nested too deeply or has a number that is too large; correct it.") from error
