"""A study in plain words: what a person would want to read before agreeing to it."""

from __future__ import annotations

from fedml.study import Study


def describe(study: Study) -> str:
    """The plan as text."""
    about, cohort, fed, work = study.study, study.cohort, study.federation, study.training
    split = cohort.split
    lines = [
        f"Study       {about.name}",
        f"Question    {about.question or '(none given)'}",
        f"Purpose     {about.purpose or '(none given)'}",
        f"Identity    {study.sha256}",
        "",
        f"Reads       {_inputs(study)}",
        f"Predicts    {cohort.target}: "
        + (f"one of {', '.join(map(str, cohort.classes))}" if study.model.task == "classification" else "a number"),
        f"Persons     {split.train:.0%} train, {split.val:.0%} validation, {split.test:.0%} test, by a keyed hash of the person's id"
        " (unless a site's file fixes it)",
        "",
        f"Sites       {', '.join(fed.sites)}; a round needs {fed.needed} of {len(fed.sites)} within {fed.timeout} s",
        f"Each round  a site gets the model, measures it, trains it for {work.local_epochs} pass(es) over its training persons",
        f"            ({work.optimizer}, learning rate {work.lr:g}, {work.batch_size or 'all'} persons a step), and sends it back;",
        f"            {fed.rounds} rounds",
        f"Combined    by {study.strategy.name}" + "".join(f", {k} = {v}" for k, v in study.strategy.options.items()),
        "",
        "Leaves a site",
        "            before: its site name, persons a part and class" + _before(study),
        "            each round: the trained model's numbers, how many trained it, the sum of their losses,",
        "            and counts of right and wrong answers and of scores (a histogram) over its validation persons",
        "            at the end: the same counts over its test persons",
        "Never       a person's id, image, genotype or row of a table",
        f"Privacy     unit: {study.privacy.unit}. No noise is added: what is released can in principle reveal something about a person.",
    ]
    return "\n".join(lines)


def _inputs(study: Study) -> str:
    told = []
    for name in study.cohort.inputs:
        if name == "clinical" and study.cohort.clinical is not None:
            told.append(f"{len(study.cohort.clinical.columns)} clinical columns ({', '.join(study.cohort.clinical.columns)})")
        elif name == "image":
            shape = study.cohort.image
            told.append("images" + (f" of {' x '.join(map(str, shape.size))}" if shape else ""))
        else:
            told.append(f"variants, matched between sites by {study.cohort.variants.match}")
    return "; ".join(told)


def _before(study: Study) -> str:
    told = []
    if "variants" in study.cohort.inputs:
        told.append("which variants its file holds")
    sums = {"clinical": "clinical column", "variants": "variant", "image": "image channel"}
    told.append("count, sum and sum of squares of each " + " and ".join(sums[i] for i in study.cohort.inputs) + " over training persons")
    return ", " + ", ".join(told)
