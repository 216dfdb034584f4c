"""``[training]`` in words, for the plan and the checklists."""

from __future__ import annotations

from collections.abc import Iterator

from fedml.study.code_section import is_own
from fedml.study.mask_losses import options_of
from fedml.study.study import Study
from fedml.study.training_section import Training


def length(plan: Training) -> str:
    """How long a site trains in a round."""
    return f"{plan.local_steps} steps on" if plan.local_steps else f"{plan.local_epochs} passes over"


def options(study: Study) -> Iterator[str]:
    """What ``[training]`` asks for beyond optimiser, learning rate and batches, one phrase each; nothing without further keys."""
    plan, noised = study.training, "noised " if study.privacy.metrics == "private" else ""
    yield from _steps(plan)
    if plan.loss is not None and not is_own(plan.loss):
        arguments = ", ".join(f"{key} {value}" for key, value in options_of(plan.loss, plan.loss_options).items())
        yield f"{plan.loss} loss" + (f" ({arguments})" if arguments else "")
    if plan.class_weights == "inverse":
        yield "a person's loss weighted inversely to the frequency of the person's class, from the counts of all sites"
    elif plan.class_weights and study.traits.label == "mask":
        yield f"voxels and overlaps weighted by class ({', '.join(f'{w:g}' for w in plan.class_weights)})"
    elif plan.class_weights:
        yield f"a person's loss weighted by class ({', '.join(f'{w:g}' for w in plan.class_weights)})"
    if plan.label_smoothing:
        yield f"label smoothing {plan.label_smoothing:g}"
    if plan.focal:
        yield f"focal loss with gamma {plan.focal:g}"
    if plan.sampling == "balanced":
        yield "persons drawn with replacement, each class of a site alike often"
    if plan.ema:
        yield f"the result is the moving average of the rounds' models, each model with a weight of {1 - plan.ema:g} when it comes"
    if plan.keep == "best":
        yield f"the result is the model with the best {noised}validation metrics of all but the last round's"
    if plan.patience:
        yield f"the run ends when {plan.patience} round(s) brought no better {noised}validation metrics"


def _steps(plan: Training) -> Iterator[str]:
    if plan.nesterov:
        yield "Nesterov's momentum"
    if plan.schedule is not None:
        spec = plan.schedule
        if spec.warmup:
            yield f"the learning rate rises over the first {spec.warmup} round(s)"
        if spec.kind == "cosine":
            yield f"the learning rate falls along a cosine to {plan.lr * spec.lowest:g}"
        if spec.kind == "step":
            yield f"the learning rate is multiplied by {spec.factor:g} every {spec.every} round(s)"
    if plan.max_norm:
        yield f"a step's gradient clipped to a length of {plan.max_norm:g}"
    if plan.keep_optimizer:
        yield "the optimiser goes on from its state of the last round"
