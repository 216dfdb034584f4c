"""Classification: cross-entropy, and metrics from counts that add (``classification_measures.py``)."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import numpy as np
import torch

from fedml.errors import NotBuilt
from fedml.study.section import normal
from fedml.study.study import Study
from fedml.study.training_section import Training
from fedml.tasks.classification_counts import COARSE, COARSE_STEP, class_counts, class_fields, coarse, grouped, spread
from fedml.tasks.classification_loss import classification_loss
from fedml.tasks.classification_measures import MEASURES
from fedml.tasks.drawn import statistic
from fedml.tasks.task import Answer, Compared, Floats, Labels, LinearScore, Result, Task, Words

EVALUATION_BATCH = 512  # persons; gradients are not kept


def classification_task(study: Study) -> Task:
    """The task of a study whose target is a class of each person."""
    target, names = study.cohort.outcome, tuple(normal(c) for c in study.cohort.classes)
    return Task(
        name=study.model.task, traits=study.traits, classes=names, scored={}, outputs=len(names),
        truth=itemgetter("label"), loss=classification_loss(study.training),
        counts=class_counts, fields=class_fields(len(names)), coarse=coarse,
        grouped=grouped, spread=spread,
        evaluation_batch=EVALUATION_BATCH, measures=MEASURES, watched="auroc", higher=True, measure="auroc", risks=True, over_time=None,
        labels=class_labels(study), answer=_answer(names),
        compared=Compared(
            values=lambda output, truth: torch.softmax(output.double(), 1).numpy(),
            statistic=lambda labels, values: statistic("auroc", labels, values),
        ),
        linear_score=LinearScore("log(OR)", f"the log-odds of {target} {names[1]} against {names[0]}") if len(names) == 2
        else NotBuilt("the log-odds of one class against another need two classes"),
        words=Words(
            predicts=f"one of {', '.join(map(str, study.cohort.classes))}",
            counts="counts of right and wrong answers and of scores (a histogram)",
            outcome=f'The outcome is the column "{target}", with classes {", ".join(names)}.',
            output=f"The model gives a probability for each of {len(names)} classes; the predicted class is the most probable one.",
            balance=balance(study.training, names),
            no_prediction="",
            no_classes="",
            answer=lambda result: _sentences(target, names, result),
            unknown=("It does not state the risk at which a person would be treated, so benefit and harm are not assessed.",),
            groups=f"Scores of a group are released in {COARSE} steps, {COARSE_STEP:.2f} of log-odds wide at 0 and wider beyond, so "
            "its AUROC is less exact than that of all.",
        ),
    )  # fmt: skip


def balance(plan: Training, names: tuple[str, ...]) -> str:
    """How classes are weighed in training."""
    if plan.sampling == "balanced":
        return "Each site draws training persons of each of its classes alike often, with replacement."
    if plan.class_weights == "inverse":
        return "A person's loss is multiplied by a weight that is inverse to the frequency of the person's class over all sites."
    if plan.class_weights:
        each = ", ".join(f"{weight:g} for {name}" for name, weight in zip(names, plan.class_weights, strict=True))
        return f"A person's loss is multiplied by the weight of the person's class: {each}."
    return "All training persons of a site have the same weight in the loss; no class is oversampled."


def class_labels(study: Study) -> Labels:
    """Labels that are the number of the person's class."""
    classes, target = study.cohort.classes, study.cohort.outcome
    return Labels(
        read=lambda cells: cells.codes(target, classes),
        cells=lambda labels: {target: [classes[int(v)] for v in labels]},
        show=lambda label: str(classes[int(label)]),
        placeholder=lambda labels, random: labels,
        canary=lambda count, between, random: random.integers(0, len(classes), count).astype(np.float64),
    )


def class_prediction(names: tuple[str, ...], p: Floats) -> dict[str, list[Any]]:
    """Columns of (persons, classes) probabilities: one for each class, and the most probable class."""
    return {**{f"probability_{c}": p[:, i].tolist() for i, c in enumerate(names)}, "predicted": [names[i] for i in p.argmax(1)]}


def _answer(names: tuple[str, ...]) -> Answer:
    def caption(output: torch.Tensor) -> str:
        p = output.softmax(0).tolist()
        best = int(np.argmax(p))
        return f"predicted {names[best]} ({p[best]:.2f})"

    return Answer(
        columns=lambda output, batch: class_prediction(names, torch.softmax(output.double(), 1).numpy()),
        example=class_prediction(names, np.full((1, len(names)), 1 / len(names))),
        caption=caption,
    )


def _sentences(target: str, names: tuple[str, ...], result: Result) -> list[str]:
    """The AUROC and whether it is better than a guess, and the accuracy."""
    two, second = len(names) == 2, f"{target} = {names[1]}"
    if two:
        cases = f", {result.by_class[1]:,} of them with {second}" if result.by_class else ""
        out = [f"Measured on {result.held}{cases}: AUROC {result.headline}."]
        out += [f"For a person with {second} and a person without, the model gives the higher risk to the person with it in "
                f"{result.percent('auroc')} of such pairs (50 % would be a guess)."]  # fmt: skip
    else:
        out = [f"Measured on {result.held}: AUROC {result.headline}, the mean over {len(names)} classes, each against the rest."]
    main = result.estimates["auroc"]
    if main["low"] is not None and main["low"] <= 0.5:
        out += ["The ranking is worse than a guess." if main["high"] < 0.5 else "The model is not shown to be better than a guess."]
    right = f"The most probable class is correct in {result.percent('accuracy')} of persons"
    found = f" (it finds {result.percent('sensitivity')} of those with, and {result.percent('specificity')} of those without)"
    noise = ["The counts behind these numbers were noised for privacy."] if result.noised else []
    return [*out, f"{right}{found if two else ''}.", *noise]
