"""A study as text, for a person who decides about its approval."""

from __future__ import annotations

from textwrap import wrap

from fedml.modalities.registry import modalities_of
from fedml.strategies.algorithms.registry import algorithm_of
from fedml.study import training_words
from fedml.study.own_names import own_names
from fedml.study.study import Study
from fedml.study.training_round import changeable
from fedml.tasks.registry import make_task
from fedml.text import printable

_DISCLOSED = (
    "the limits in its policy, how far it trusts the centre, and the approver's reason for that, unless the site does not disclose them"
)


def describe(study: Study) -> str:
    """The plan as text.

    Raises:
        InputError: the study's algorithm is not known, or refuses the study.
    """
    about, cohort, fed, work = study.study, study.cohort, study.federation, study.training
    words = algorithm_of(study).words
    split = cohort.split
    lines = [
        f"Study       {about.name}",
        f"Question    {' '.join(about.question.split()) or '(none given)'}",
        f"Purpose     {about.purpose or '(none given)'}",
        f"Identity    {study.sha256}",
        "",
        f"Reads       {'; '.join(modality.words.plan(study) for modality in modalities_of(study))}",
        *(_wrapped(_by_site(study)) if cohort.by_site else []),
        f"Predicts    {cohort.outcome}: {make_task(study).words.predicts}",
        f"Persons     {split.train:.0%} train, {split.val:.0%} validation, {split.test:.0%} test, by a keyed hash of the person's id"
        f" (unless a site has a split file){f'; fold {split.fold} of {split.folds}' if split.folds else ''}",
        "",
        f"Sites       {', '.join(fed.training)}; a round needs {fed.needed} of {len(fed.training)} within {fed.timeout} s",
        *(_wrapped(_external(study)) if fed.evaluate_only else []),
        f"Each round  a site gets the model{words.gets}, evaluates it, trains it for {training_words.length(work)} its training persons",
        f"            ({work.optimizer}, learning rate {work.lr:g}, {work.batch_size or 'all'} persons a step), and sends it back;",
        f"            {fed.rounds} rounds",
        *_options(study),
        *_begins(study),
        *_own_code(study),
        f"Combined    by {study.strategy.name}" + "".join(f", {k} = {v}" for k, v in study.strategy.options.items()),
        *([f"Kept        at the site between rounds: {words.keeps}"] if words.keeps else []),
        "",
        "Leaves a site",
        *(line for text in leaves(study) for line in _wrapped(text)),
        *_association(study),
        *_outcomes(study),
        "Never       a person's id, image, genotype or row of a table as such",
        *([f"Caution     {text}"] if (text := caution(study)) else []),
        *_privacy(study),
    ]
    return "\n".join(printable(line) for line in lines)


def _begins(study: Study) -> list[str]:
    """With which weights the model begins, and which are not trained."""
    start, lines = study.model.start, list[str]()
    if start is not None:
        private = ", nor of its epsilon" if study.privacy.unit != "none" else ""
        lines.append(
            f"with up to {len(start.arrays)} arrays of a file with SHA-256 {start.sha256}, those with a name and shape of the model's, the "
            "others by the seed; what these weights hold of persons, who may be among those of this study, is not part of this "
            f"plan{private}"
        )
    if study.training.freeze:
        lines.append(f"not trained: {', '.join(study.training.freeze)}")
    wrapped = [line.strip() for text in lines for line in _wrapped(text)]
    return [f"{'Begins' if place == 0 else '':12}{line}" for place, line in enumerate(wrapped)]


def _own_code(study: Study) -> list[str]:
    """Which parts of the plan are code of the study's author, and the files with it."""
    if study.code is None:
        return []
    named = [f"{key} = {name}" for key, name in own_names(study.cohort, study.model, study.training, study.evaluation)]
    files = [f"{file.module}.py SHA-256 {file.sha256}" for file in study.code.modules]
    files += [f"{package.name} {package.version}, installed, SHA-256 {package.sha256}" for package in study.code.packages]
    lines = [line.strip() for text in ("; ".join(named), *files) for line in _wrapped(text)]
    return [f"{'Own code' if place == 0 else '':12}{line}" for place, line in enumerate(lines)]


def _options(study: Study) -> list[str]:
    """Further keys of ``[training]``, and what a Flower strategy may change of it."""
    texts = list(training_words.options(study))
    if algorithm_of(study).server is None and (keys := changeable(study)):
        texts.append(f"the strategy may lower in any round: {', '.join(f'{key} (at most {value:g})' for key, value in keys.items())}")
    lines = [line for text in texts for line in _wrapped(text)]
    return [f"{'Training':12}{line.strip()}" if place == 0 else line for place, line in enumerate(lines)]


def _by_site(study: Study) -> str:
    return (
        f"{' and '.join(study.cohort.by_site)} standardised at each site by mean and SD of its own training persons (a site that does not "
        "train: of all), which stay there and are not in the model"
    )


def _external(study: Study) -> str:
    names, private = ", ".join(study.federation.evaluate_only), study.privacy.metrics == "private"
    counted, noised = "" if study.privacy.unit == "patient" else ", persons by class", ", with noise" if private else ""
    return (
        f"external validation: {names}; such a site does not train: it sends its site name{counted} and what its inputs are, and at "
        f"the end the counts over all of its persons (the test part, if it has a split file){noised}; metrics of the other sites do "
        "not contain them"
    )


def _before(study: Study) -> str:
    sent = [text for modality in modalities_of(study) for text in modality.words.sends(study)]
    summed = [f"each {modality.words.column}" for modality in modalities_of(study) if modality.name not in study.cohort.by_site]
    if not summed and study.traits.standardised:
        summed = ["the target"]
    sums = [f"count, sum and sum of squares of {' and '.join(summed).replace(' and each ', ' and ')} over training persons"]
    return "".join(f", {text}" for text in [*sent, *(sums if summed else [])])


def caution(study: Study) -> str:
    """A warning about exact answers; "" if everything that leaves is privatised."""
    if study.privacy.unit == "patient" and study.privacy.metrics == "private":
        return ""
    what = "exact counts" if study.privacy.unit == "patient" else "exact counts and trained weights"
    return f"{what} can still reveal something about single persons; a site refuses the messages by which that is known to be done"


def leaves(study: Study) -> list[str]:
    """What leaves a site, one sentence for each stage of the run."""
    patient, counts, when = study.privacy.unit == "patient", make_task(study).words.counts, _evaluated(study)
    enough = f", if it has enough of them{'' if study.cohort.split.val else ' (the split plans no validation persons)'}"
    noised = ", with noise" if study.privacy.metrics == "private" else ""
    if patient:
        sums = _before(study) + ", with noise" if study.privacy.statistics == "private" else ""
        return [
            "before: its site name" + "".join(f"; {text}" for m in modalities_of(study) for text in m.words.sends(study)) + sums,
            "each round: the trained model's numbers, with noise; not how many persons train (the study states it roughly), and "
            f"{when}{counts} over its validation persons{noised or enough}",
            f"at the end: the same counts over its validation and its test persons{noised or enough}",
            f"as evidence: {_DISCLOSED}",
        ]
    stated, more = study.privacy.unit == "site", algorithm_of(study).words.leaves
    return [
        "before: its site name, persons by part and class" + ("" if stated else _before(study)),
        f"each round: the trained model's numbers, {f'{more}, ' if more else ''}how many trained it, the sum of their losses, and "
        f"{when}{counts} over its validation persons{enough}",
        "at the end: the same counts over its validation and its test persons, if it has enough of them" + _groups(study),
        "as evidence: a SHA-256 of the data it read, how many persons have an excluded image, by reason, and " + _DISCLOSED,
    ]


def _evaluated(study: Study) -> str:
    """Before which rounds validation persons are evaluated, where that is not before each."""
    every = study.training.evaluate_every
    return "" if every == 1 else f"in round 1 and every {every} rounds after it " if every else "never before the end "


def _wrapped(text: str) -> list[str]:
    return wrap(text, 132, initial_indent=" " * 12, subsequent_indent=" " * 12, break_long_words=False, break_on_hyphens=False)


def _groups(study: Study) -> str:
    names = list(study.evaluation.labels())
    return f", and over those of each group large enough, by {', '.join(names)}" if names else ""


def _association(study: Study) -> list[str]:
    """The data that genotype checks and an association study send."""
    spec, plan, lookup = study.cohort.variants, study.gwas, study.frequencies
    if "variants" not in study.cohort.inputs or (plan is None and lookup is None and not spec.counted):
        return []
    lines = ["            of genotypes: how many persons have 0, 1, 2 copies of each variant or no call"]
    if plan is not None:
        adjusted = [*plan.covariates, *([f"{plan.components} principal components of the genotypes"] if plan.components else [])]
        kind = "cases and controls" if study.traits.gwas == "logistic" else study.cohort.outcome
        products = "; products" if plan.components else ""
        lines += [
            f"            association (`fedml gwas`) of each variant with {kind}, adjusted for {', '.join(adjusted) or 'nothing'}:",
            "            sums and products of covariates, outcome and genotypes over all persons with them (training, validation",
            f"            and test alike){products}",
            *(["            of the genotypes with the components' loadings, fewer than there are persons"] if plan.components else []),
        ]
        if plan.relatives == "unrelated":
            lines.append(f"            each site leaves out persons until no two of its own have a kinship above {plan.max_kinship:g}")
        else:
            lines.append("            how many of a site's persons have relatives there, if that is not few")
        if plan.polygenic is not None:
            lines += [
                "            whole-genome regression ([gwas.polygenic]): products of genotypes, covariates and outcome, and of",
                f"            predictions, in {plan.polygenic.folds} folds of the site's persons, of fewer columns than a fold has persons",
            ]
    if lookup is not None:
        by = [*([f"{lookup.population}: {', '.join(map(str, lookup.populations))}"] if lookup.population else []), *["sex"] * lookup.by_sex]
        lines += [
            "            allele frequencies (`fedml frequencies`) of each variant: alleles, homozygotes and hemizygotes of all persons",
            *([f"            with genotypes, and by {' and '.join(by)}; they may be published"] if by else
              ["            with genotypes; they may be published"]),
        ]  # fmt: skip
    if plan is not None and plan.genes is not None:
        lines[1] = f"            tests of genes (`fedml genes`) with {kind}, adjusted for {', '.join(adjusted) or 'nothing'}:"
        lines += [
            "            of each gene's rare variants: their scores and products, those of few carriers counted together, so that every",
            f"            combination is about enough persons; annotation {plan.genes.sha256[:12]}, masks {', '.join(plan.genes.masks)}",
        ]
    return [*lines, "            a variant's numbers stay where 1 to min_count - 1 persons of any group have one of its genotypes"]


def _outcomes(study: Study) -> list[str]:
    """The data that analyses of outcomes send."""
    times = study.survival
    curves, cox = (None, None) if times is None else (times.curves, times.cox)
    lines = []
    if curves is not None:
        by = f" by {curves.groups}" if curves.groups else ""
        lines.append(f"            survival curves (`fedml survival`){by}: who enters, has an event, leaves in each interval")
    if cox is not None:
        lines += [
            f"            Cox regression (`fedml survival`) on {', '.join(cox.covariates)}: sums of hazards over who is at risk in each",
            "            interval, sums and products of covariates over all persons, and this site's own coefficients",
        ]
        if cox.weights is not None:
            lines.append(f"            each of these sums is weighted by column {cox.weights}")
        if cox.hazard == "subdistribution":
            lines.append("            and who has each event or is censored in each interval (subdistribution hazards)")
    if study.glm is not None:
        lines += [
            f"            regression (`fedml glm`) of {study.cohort.outcome} on {', '.join(study.glm.covariates)}: gradients and products",
            "            of covariates over all persons, and this site's own coefficients",
        ]
        if study.glm.standardise is not None:
            lines.append(f"            and sums of the predicted outcome if everyone had each level of {study.glm.standardise}")
    if (plan := study.treatment) is not None:
        told, job = (f"those of {study.cohort.outcome}", "glm") if times is None else ("who leaves when", "survival")
        lines += [
            f"            comparison of treatments (`fedml {job}`) by {plan.column}: gradients and products of",
            f"            {', '.join(plan.covariates)} over all persons, and of each treatment their sums and {told},",
            "            weighted by the score",
        ]
    if study.describe is not None:
        lines.append("            the table of persons (`fedml describe`): counts, sums, histograms of columns; small cells hidden")
    if curves is not None or cox is not None or (times is not None and study.treatment is not None):
        lines.append("            intervals of the grid that would tell of few persons are merged")
    return lines


def _privacy(study: Study) -> list[str]:
    plan = study.privacy
    if plan.unit == "none":
        return ["Privacy     unit: none. No noise is added: released values can in principle reveal something about a person."]
    kept = f"epsilon {plan.epsilon:g}" if plan.epsilon is not None else f"noise multiplier {plan.noise_multiplier:g}"
    if plan.unit == "patient":
        return [
            f"Privacy     unit: one patient of a site; {kept}, delta {plan.delta:g}: each site clips every person's gradient to "
            f"{plan.clipping_norm:g}",
            "            and adds noise before anything leaves (DP-SGD); the site's ledger records the privacy cost to each person",
        ]
    return [
        f"Privacy     unit: one site; {kept}, delta {plan.delta:g}: the server clips each site's update to {plan.clipping_norm:g} and adds",
        "            noise to their mean. It protects against readers of the models; the server itself receives each site's exact update.",
    ]
