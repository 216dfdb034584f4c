"""The sentences of the report: the answer, the weakest site and subgroup, the cost in privacy, the limits of the record.

Every sentence follows from the record by a rule in this file; no sentence goes beyond the intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedml.experiments.report.markup import between, written
from fedml.experiments.runs.record import Record
from fedml.runs.software import CHANGED, other_code
from fedml.tasks.registry import make_task
from fedml.tasks.task import Result

Found = Mapping[str, Any]

PARTS = {"test": "test", "val": "validation", "train": "training"}
FEW_CASES = 100  # of each class; with fewer, a validation is too uncertain (Collins et al. 2016, Stat Med 35:214)
FEW_SITE = 10


def named(record: Record, measure: str) -> str:
    """The printed name of a measure, such as ``Dice of all voxels, liver`` for ``dice/liver``."""
    label = measure.partition("/")[2]
    return make_task(record.study).described(measure).printed + (f", {label}" if label else "")


def count(number: float, what: str) -> str:
    """``1 site``, ``3 sites``."""
    return f"{number:,.0f} {what}{'' if number == 1 else 's'}"


def join(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def interval_of(estimate: Mapping[str, Any] | None) -> str:
    """``0.878 (95 % interval 0.84 to 0.91)``."""
    if estimate is None or estimate["value"] is None:
        return "not defined"
    limits = between(estimate)
    return f"{written(estimate['value'])} ({'95 % interval ' + limits if limits else 'no interval'})"


def outcome(record: Record, found: Found, c: int = 1) -> str:
    """The class of the outcome as text, such as ``disease = 1``."""
    return f"{record.study.cohort.outcome} = {found['classes'][c]}"


def answer(record: Record, found: Found) -> list[str]:
    """The answer to the question, in a few sentences."""
    score = found["scores"]["all"]
    if score is None:
        done = f"after {found['run']['rounds']} of {count(found['run']['planned'], 'planned round')}"
        why = f"Reason in the log: {record.end.reason}" if record.end.reason else ""
        ended = {"finished": "had no persons to evaluate", "failed": "failed", "stopped": "was stopped"}.get(
            record.status, "has no end event in its log"
        )
        return [f"There is no answer: the run {ended}, {done}.", *([why] if why else [])]
    sites = [s for s, row in found["scores"]["sites"].items() if row]
    held = f"{count(score['persons'], PARTS[found['part']] + ' person')} held out at {count(len(sites), 'site')}"
    known = not any(row and row["classes"] is None for row in found["scores"]["sites"].values())
    result = Result(
        held,
        (score["classes"] or ()) if known else (),
        score["metrics"],
        found["measure"],
        found["noised"],
        interval_of,
        lambda value: written(value),
    )
    return make_task(record.study).words.answer(result)


def took_part(record: Record, found: Found) -> str:
    """How many sites began, how many rounds there were, and how many sites took part in each."""
    run, names = found["run"], record.study.federation.training
    agreed = [site for site in names if found["sites"][site]["agreed"]]
    text = f"{count(len(agreed), 'site')} of {len(names)} agreed; {run['rounds']} of {count(run['planned'], 'planned round')} were done."
    if not record.rounds:
        return text
    always = [site for site in agreed if found["sites"][site]["rounds"] == run["rounds"]]
    return f"{text} {len(always)} of them took part in every round; a round needs {record.study.federation.needed}."


def resumed(record: Record) -> str:
    """That the run stopped and went on: after which rounds, and whether by other code of this software."""
    where = [f"after round {event.round}" if event.round else "before its first round" for event in record.resumed]
    how = {"killed": "its process ended without a word", "failed": "it failed", "stopped": "it was stopped from the keyboard"}
    why = [f"{place} ({how[event.status]})" for place, event in zip(where, record.resumed, strict=True)]
    other = "" if all(other_code(record.start.code, event.code) is None for event in record.resumed) else ", by other code of this software"
    return f"The run stopped and was resumed {join(why)}{other}; the round in progress was repeated."


def asked(record: Record) -> str:
    """What the model is to predict, from what, of whom: in words for a reader who knows none of the terms."""
    study, task = record.study, make_task(record.study)
    inputs = {"image": "images", "variants": "genetic variants", "clinical": "clinical columns", "omics": "molecular measurements",
              "radiomics": "measures of regions in images"}  # fmt: skip
    what = join([inputs.get(name, name) for name in study.cohort.inputs])
    sites = study.federation.training or study.federation.sites
    predicted = f"{study.cohort.outcome} ({task.words.predicts})"
    if record.start.job == "evaluate":
        return f"Does a finished model predict {predicted} from {what}? It was tested at {count(len(sites), 'site')}; nothing was trained."
    return (
        f"Can {predicted} be predicted from {what}? A model was to learn it from the persons of {count(len(sites), 'site')}, whose data "
        "were "
        "not put together, and to be measured on persons who were held out of training."
    )


def fails(record: Record, found: Found) -> list[str]:
    """Where the model is weakest, and what is not known about that."""
    out = weak(record, found)
    if not out:
        out.append("Fewer than two sites have a value, so the record does not show whether it is worse at some.")
    groups = found["scores"]["groups"]
    if not groups:
        out.append("The study names no groups of persons: whether it fails for women, the old or others is not known.")
    elif hidden := [label for label, row in groups.items() if row is None]:
        out.append(f"Not known for {join(hidden)}: no site reported so few, or there was nobody.")
    return out


def trusted(record: Record, found: Found) -> list[str]:
    """Whom a reader of this page has to believe, and what can be checked without belief."""
    own = "The measures of the last evaluation follow from the counts in the record, from which anyone can compute them again."
    if not record.counts:
        own = "The record has no counts from which measures could be computed again."
    elif record.study.evaluation.metrics:
        own += " Those of the study's own code are as the server recorded them."
    if found["run"]["engine"] != "deployment":
        who = "One trusts whoever ran this on one machine with the data of all sites: no hospital was asked to approve it."
        return [f"{who} Who has the data can run it again. {own}"]
    heads = [s for s, row in found["sites"].items() if row["journal"]]
    seen = f"The record names the head of the journal of {join(heads)}, with which that site can confirm it." if heads else ""
    return [f"One trusts each site for its own counts, and the coordinator for the record. {seen} {own}".replace("  ", " ")]


def weak(record: Record, found: Found) -> list[str]:
    """The worst site and the worst subgroup, with intervals."""
    scores, out = found["scores"], []
    if (worst := found["worst"]) is not None:
        out.append(f"Weakest at {worst}: {_row(record, found, scores['sites'][worst])}.")
    groups = {label: row for label, row in scores["groups"].items() if row and row["metrics"][found["measure"]]["value"] is not None}
    if len(groups) > 1:
        value = {label: row["metrics"][found["measure"]]["value"] for label, row in groups.items()}
        low = (min if found["higher"] else max)(value, key=value.__getitem__)
        out.append(f"Weakest reported subgroup, {low}: {_row(record, found, groups[low])}.")
    return out


def external(record: Record, found: Found) -> list[str]:
    """The main measure at each site that did not train."""
    out = []
    for site, row in found.get("external", {"sites": {}})["sites"].items():
        if row and found["measure"] in row["metrics"]:
            out.append(f"External validation at {site}, which did not train: {_row(record, found, row)}.")
    return out


def _row(record: Record, found: Found, row: Mapping[str, Any]) -> str:
    text = f"{named(record, found['measure'])} {interval_of(row['metrics'][found['measure']])} in {count(row['persons'], 'person')}"
    if row["classes"] and len(row["classes"]) == 2:
        negative, positive = row["classes"]
        text += f", {positive} with {outcome(record, found)} and {negative} without"
    return f"{text}: too few for a conclusion" if row["persons"] < FEW_SITE or min(row["classes"] or [FEW_SITE]) < FEW_SITE else text


def calibrated(found: Found) -> str:
    """Whether the predicted risks are calibrated: whether the intervals of slope and calibration-in-the-large contain 1 and 0."""
    result = found.get("by_class", {}).get("1") if len(found["classes"]) == 2 else None
    if result is None:
        return ""
    slope, large = result["all"]["slope"], result["all"]["in_the_large"]
    if slope["value"] is None or large["value"] is None:
        return "Calibration cannot be computed from these persons, so it is unknown whether the predicted risks are right."
    deviations = []
    if not large["low"] <= 0 <= large["high"]:
        more = "lower" if large["value"] > 0 else "higher"
        deviations.append(f"on the whole they are {more} than the observed frequency (in the large {interval_of(large)}; 0 if perfect)")
    if not slope["low"] <= 1 <= slope["high"]:
        how = "extreme: high risks too high, low risks too low" if slope["value"] < 1 else "close to the middle"
        deviations.append(f"they are too {how} (calibration slope {interval_of(slope)}; 1 if perfect)")
    if not deviations:
        numbers = f"calibration slope {interval_of(slope)}, 1 if perfect; in the large {interval_of(large)}, 0 if perfect"
        return f"In these persons the predicted risks are not shown to be wrong: {numbers}."
    return f"The predicted risks are off: {'; '.join(deviations)}."


def privacy(found: Found) -> list[str]:
    """The privacy guarantee of the run and its cost, in plain words."""
    claim = found["privacy"]
    if claim["unit"] == "none":
        return [
            f"None. There is no differential privacy: no noise was added. {_exact(found)}",
            f"{_where(found)} They can in principle reveal something about a person, and the run gives no bound on that.",
        ]
    if "epsilon" not in claim:
        return [f"The study requires privacy of one {claim['unit']}, but the run's record does not state the epsilon that was spent."]
    protected = "person of a site" if claim["unit"] == "patient" else "site"
    epsilon = written(claim["epsilon"], "epsilon")
    inside = "was among the training persons" if claim["unit"] == "patient" else "took part"
    return [
        f"Differential privacy of one {protected}: epsilon {epsilon}, delta {claim['delta']:g}. Two data sets are neighbours if one of "
        f"them has one {protected} more.",
        f"In plain words: an attacker who knows everything but whether a given {protected.partition(' ')[0]} {inside}, holds both for "
        f"equally likely, and sees everything that is covered, is right in at most {written(claim['guess'], 'percent')} of cases; a coin "
        "toss is right in 50 %. This follows from the noise of all releases, not from epsilon. Delta alone: epsilon bounds the change of "
        f"odds except with a probability of {claim['delta']:g}.",
    ]


def _exact(found: Found) -> str:
    """What was done to counts of few persons; it depends on whether a site said that its data are public."""
    policies = [row["policy"] for row in found["sites"].values() if row["agreed"]]
    if policies and all(policy and policy.get("public") for policy in policies):
        return "All sites say that their data are public: counts, updates and other sums that left them are exact."
    return (
        "Where data are not public, counts of few persons were rounded or withheld and scores put in groups; updates and other sums that "
        "left the sites are exact."
    )


def _where(found: Found) -> str:
    """Where the persons' data were in this run, and what went from the sites to the server."""
    if found["run"]["engine"] == "deployment":
        return "Persons' data stayed at their sites. Model updates and counts left the sites."
    return (
        "All sites' data were on one machine in this run. What passed from the sites' clients to the server are model updates and counts."
    )


def privacy_short(found: Found) -> tuple[str, str]:
    """Epsilon (or "none") and the unit of privacy."""
    claim = found["privacy"]
    if claim["unit"] == "none":
        return "none", "no noise was added"
    unit = "one person of a site" if claim["unit"] == "patient" else "one site"
    return f"ε {written(claim['epsilon'], 'epsilon')}" if "epsilon" in claim else "not reported", f"for {unit}"


def limits(record: Record, found: Found) -> list[str]:
    """The limits of the result, as far as the record shows them."""
    return [*_limits_of_run(record, found), *_limits_of_persons(record, found), *_limits_of_sites(record, found), *_unknown(record, found)]


def _limits_of_run(record: Record, found: Found) -> list[str]:
    out = []
    if record.status != "finished":
        out.append(f"The run did not finish (status: {record.status}).")
    if found["part"] == "val":
        out.append("There were no test persons: the measures are of validation persons, which may have been used to tune the study.")
    only = record.study.federation.evaluate_only
    if only and "external" not in found and record.study.federation.training:
        out.append(f"No external validation: no person was evaluated at {join(only)}.")
    if found["part"] == "test" and not only:
        out.append(
            "No external validation: test persons are of the same sites as training persons. Performance at other sites is not known."
        )
    out.append("One run with one seed: intervals are over persons and do not include the variation between seeds.")
    out.append("The record contains no comparison with pooled data, with a single site, or with another method.")
    if record.start.engine != "deployment":
        where = f"The run was on one machine (engine {record.start.engine})"
        out.append(f"{where}: the data of all sites were accessible there, and no site's approval was requested.")
    if record.start.code is not None and record.start.code["commit"].endswith(CHANGED):
        out.append("The run was made by code of this software with uncommitted changes: no published version has it.")
    if record.start.git_commit.endswith(CHANGED):
        out.append("The study file was in a working tree with uncommitted changes.")
    if found["curves"]["part"] == "train":
        out.append("The rounds evaluated no validation persons: learning curves are of training persons and are optimistic.")
    return out


def _limits_of_persons(record: Record, found: Found) -> list[str]:
    score, out = found["scores"]["all"], list[str]()
    if score is None:
        return out
    if found["noised"]:
        out.append("Counts were noised for privacy: measures contain this noise, may be impossible values, and have no intervals, "
                   "curves or calibration.")  # fmt: skip
    elif all(e["low"] is None for e in score["metrics"].values()):
        out.append("The run has no stored counts, so measures have no intervals.")
    if score["classes"] and min(score["classes"]) < FEW_CASES:
        rows = [f"{n:,} of class {c}" for c, n in zip(found["classes"], score["classes"], strict=True) if n < FEW_CASES]
        out.append(f"Few persons in the evaluation: {join(rows)}; at least {FEW_CASES} of each are recommended (Collins et al. 2016).")
    labels = [label for labels in record.study.evaluation.labels().values() for label in labels]
    hidden = [label for label in labels if found["scores"]["groups"].get(label) is None]
    if not labels:
        out.append("The study names no subgroups: whether performance differs by sex, age or other groups is not known.")
    elif hidden:
        out.append(f"Subgroups that no site reported (too few persons, or none): {', '.join(hidden)}.")
    return out


def _limits_of_sites(record: Record, found: Found) -> list[str]:
    scores, out = found["scores"], []
    too_few = [s for s, row in scores["sites"].items() if row and min(row["classes"] or [row["persons"]]) < FEW_SITE]
    if too_few:
        what = "a class has" if any(row and row["classes"] for row in scores["sites"].values()) else "there are"
        out.append(f"At {join(too_few)} {what} fewer than {FEW_SITE} persons in the evaluation: performance there is hardly known.")
    absent = [s for s, row in found["sites"].items() if not row["agreed"]]
    if absent and record.agreed.came:
        out.append(f"Did not take part at all: {join(absent)}.")
    missed = [f"{s} ({sum(row['missed'].values())})" for s, row in found["sites"].items() if row["missed"] and row["agreed"]]
    if missed:
        out.append(f"Missed exchanges: {join(missed)}.")
    unmeasured = [s for s, row in scores["sites"].items() if not row]
    if unmeasured and scores["all"]:
        out.append(f"No person was evaluated at {join(unmeasured)}.")
    whole = scores["all"]["metrics"][found["measure"]]["value"] if scores["all"] else None
    for site, row in scores["sites"].items() if whole is not None else ():
        local = row["metrics"][found["measure"]] if row else None
        if local and local["low"] is not None and (local["high"] < whole if found["higher"] else local["low"] > whole):
            side = "below" if found["higher"] else "above"
            out.append(
                f"At {site} the model seems to perform worse: the interval, {between(local)}, is entirely {side} the value of all sites; "
                f"among {sum(bool(r) for r in scores['sites'].values())} sites this may happen by chance."
            )
    excluding = [s for s, row in found["sites"].items() if row["excluded"]]
    if excluding:
        out.append(f"No measure includes persons with excluded images ({join(excluding)}): see the table of sites.")
    return out


def _unknown(record: Record, found: Found) -> list[str]:
    out = [
        "The record does not state who the persons are, how they were selected, how the outcome was determined, or whether data are real."
    ]
    out += make_task(record.study).words.unknown
    undisclosed = [s for s, row in found["sites"].items() if row["agreed"] and row["policy"] is None]
    if undisclosed:
        out.append(f"Policies were not disclosed by {join(undisclosed)}.")
    return out
