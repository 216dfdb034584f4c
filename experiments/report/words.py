"""What the report says in sentences: the answer, where it is weak, what privacy it cost, what the record cannot say.

Every sentence follows from the record by a rule that stands here; none judges beyond the intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedml.experiments.report.markup import between, written
from fedml.experiments.runs.record import Record
from fedml.tasks.registry import make_task
from fedml.tasks.task import Result

Found = Mapping[str, Any]

PARTS = {"test": "test", "val": "validation", "train": "training"}
FEW_CASES = 100  # with and without: below, performance is too uncertain to be a validation (Collins et al. 2016, Stat Med 35:214)
FEW_SITE = 10


def named(record: Record, measure: str) -> str:
    """A measure's name in print, ``dice/liver`` as ``Dice of all voxels, liver``."""
    one = measure.partition("/")[2]
    return make_task(record.study).described(measure).printed + (f", {one}" if one else "")


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
    """The class of the outcome in words: ``disease = 1``."""
    return f"{record.study.cohort.target} = {found['classes'][c]}"


def answer(record: Record, found: Found) -> list[str]:
    """The answer to the question, in a few sentences."""
    score = found["scores"]["all"]
    if score is None:
        done = f"after {found['run']['rounds']} of {count(found['run']['planned'], 'planned round')}"
        why = f"The log says: {record.end.reason}" if record.end.reason else ""
        ended = {"finished": "had no person to measure on", "failed": "failed", "stopped": "was stopped"}.get(
            record.status, "has no end in its log"
        )
        return [f"There is no answer: the run {ended}, {done}.", *([why] if why else [])]
    sites = [s for s, row in found["scores"]["sites"].items() if row]
    held = f"{count(score['persons'], PARTS[found['part']] + ' person')} held out at {count(len(sites), 'site')}"
    result = Result(
        held, score["classes"] or (), score["metrics"], found["measure"], found["noised"], interval_of, lambda value: written(value)
    )
    return make_task(record.study).words.answer(result)


def weak(record: Record, found: Found) -> list[str]:
    """Where the model is worst: the site and the subgroup, with how sure that is."""
    scores, out = found["scores"], []
    if (worst := found["worst"]) is not None:
        out.append(f"Weakest at {worst}: {_row(record, found, scores['sites'][worst])}.")
    groups = {label: row for label, row in scores["groups"].items() if row and row["metrics"][found["measure"]]["value"] is not None}
    if len(groups) > 1:
        value = {label: row["metrics"][found["measure"]]["value"] for label, row in groups.items()}
        low = (min if found["higher"] else max)(value, key=value.__getitem__)
        out.append(f"Weakest reported subgroup, {low}: {_row(record, found, groups[low])}.")
    return out


def _row(record: Record, found: Found, row: Mapping[str, Any]) -> str:
    text = f"{named(record, found['measure'])} {interval_of(row['metrics'][found['measure']])} in {count(row['persons'], 'person')}"
    if row["classes"] and len(row["classes"]) == 2:
        negative, positive = row["classes"]
        text += f", {positive} with {outcome(record, found)} and {negative} without"
    return f"{text}: too few to know" if row["persons"] < FEW_SITE or min(row["classes"] or [FEW_SITE]) < FEW_SITE else text


def calibrated(found: Found) -> str:
    """Are the risks right? By whether the intervals of slope and of calibration-in-the-large hold 1 and 0."""
    own = found.get("by_class", {}).get("1") if len(found["classes"]) == 2 else None
    if own is None:
        return ""
    slope, large = own["all"]["slope"], own["all"]["in_the_large"]
    if slope["value"] is None or large["value"] is None:
        return "Calibration cannot be computed from these persons, so it is unknown whether the predicted risks are right."
    said = []
    if not large["low"] <= 0 <= large["high"]:
        more = "lower" if large["value"] > 0 else "higher"
        said.append(f"on the whole they are {more} than what came out (in the large {interval_of(large)}; 0 if perfect)")
    if not slope["low"] <= 1 <= slope["high"]:
        how = "extreme, high ones too high and low ones too low" if slope["value"] < 1 else "close to the middle"
        said.append(f"they are too {how} (calibration slope {interval_of(slope)}; 1 if perfect)")
    if not said:
        numbers = f"calibration slope {interval_of(slope)}, 1 if perfect; in the large {interval_of(large)}, 0 if perfect"
        return f"In these persons the predicted risks are not shown to be wrong: {numbers}."
    return f"The predicted risks are off: {'; '.join(said)}."


def privacy(found: Found) -> list[str]:
    """What privacy the run gave and cost, in plain words."""
    told = found["privacy"]
    if told["unit"] == "none":
        return [
            "None. There is no differential privacy: no noise was added, and what left the sites is exact.",
            "Persons' own data stayed at their sites; but updates of a model and counts, such as left them, can in principle reveal "
            "something about a person, and no bound on that is given.",
        ]
    if "epsilon" not in told:
        return [f"The study asks for privacy of one {told['unit']}, but the run's record does not say what was spent."]
    one = "person of a site" if told["unit"] == "patient" else "site"
    epsilon = written(told["epsilon"], "epsilon")
    inside = "was among those trained on" if told["unit"] == "patient" else "took part"
    return [
        f"Differential privacy of one {one}: epsilon {epsilon}, delta {told['delta']:g}. Two data sets count as neighbours if one of them "
        f"has one {one} more.",
        f"In plain words: somebody who sees all that is covered, and has to guess whether a given {one.partition(' ')[0]} {inside}, "
        f"is right in at most {written(told['guess'], 'percent')} of cases; 50 % would be a coin.",
    ]


def privacy_short(found: Found) -> tuple[str, str]:
    """Epsilon, or none, and of what."""
    told = found["privacy"]
    if told["unit"] == "none":
        return "none", "no noise was added"
    unit = "one person of a site" if told["unit"] == "patient" else "one site"
    return f"ε {written(told['epsilon'], 'epsilon')}" if "epsilon" in told else "not reported", f"for {unit}"


def limits(record: Record, found: Found) -> list[str]:
    """What a reader must hold against the result; from the record only."""
    return [*_limits_of_run(record, found), *_limits_of_persons(record, found), *_limits_of_sites(record, found), *_unknown(record, found)]


def _limits_of_run(record: Record, found: Found) -> list[str]:
    out = []
    if record.status != "finished":
        out.append(f"The run did not finish (status: {record.status}).")
    if found["part"] == "val":
        out.append("There were no test persons: the measures are of validation persons, on whom a study may have been tuned.")
    if found["part"] == "test":
        out.append(
            "No external validation: test persons are of the same sites as training persons. How the model does elsewhere is not known."
        )
    out.append("One run with one seed: intervals are over persons, and say nothing of how much another seed would change the model.")
    out.append("The run holds no comparison with a model of the pooled data, of one site alone, or with another method.")
    if record.start.engine != "deployment":
        where = f"The run was on one machine (engine {record.start.engine})"
        out.append(f"{where}: the sites' data were at hand there, and no site's approval was asked.")
    if record.start.git_commit.endswith("+changes"):
        out.append("The study lay in a working tree with changes that are in no commit.")
    if found["curves"]["part"] == "train":
        out.append("No validation persons were measured in the rounds: learning curves are of training persons and look too good.")
    return out


def _limits_of_persons(record: Record, found: Found) -> list[str]:
    score, out = found["scores"]["all"], list[str]()
    if score is None:
        return out
    if found["noised"]:
        out.append("Counts were noised for privacy: measures are off by that noise, even beyond what is possible, and have no "
                   "intervals, curves or calibration.")  # fmt: skip
    elif all(e["low"] is None for e in score["metrics"].values()):
        out.append("The run kept no counts, so measures have no intervals.")
    if score["classes"] and min(score["classes"]) < FEW_CASES:
        rows = [f"{n:,} of class {c}" for c, n in zip(found["classes"], score["classes"], strict=True) if n < FEW_CASES]
        out.append(f"Few persons to measure on: {join(rows)}, where {FEW_CASES} of each are asked for (Collins et al. 2016).")
    labels = [label for labels in record.study.evaluation.labels().values() for label in labels]
    hidden = [label for label in labels if found["scores"]["groups"].get(label) is None]
    if not labels:
        out.append("The study names no subgroups: whether the model is as good in women and men, young and old, is not known.")
    elif hidden:
        out.append(f"Subgroups that no site reported (too few persons, or none): {', '.join(hidden)}.")
    return out


def _limits_of_sites(record: Record, found: Found) -> list[str]:
    scores, out = found["scores"], []
    few = [s for s, row in scores["sites"].items() if row and min(row["classes"] or [row["persons"]]) < FEW_SITE]
    if few:
        what = "a class has" if any(row and row["classes"] for row in scores["sites"].values()) else "there are"
        out.append(f"At {join(few)} {what} fewer than {FEW_SITE} persons to measure on: what holds there is hardly known.")
    away = [s for s, row in found["sites"].items() if not row["agreed"]]
    if away and record.agreed.came:
        out.append(f"Did not take part at all: {join(away)}.")
    missed = [f"{s} ({sum(row['missed'].values())})" for s, row in found["sites"].items() if row["missed"] and row["agreed"]]
    if missed:
        out.append(f"Missed exchanges: {join(missed)}.")
    unmeasured = [s for s, row in scores["sites"].items() if not row]
    if unmeasured and scores["all"]:
        out.append(f"Nobody was measured at {join(unmeasured)}.")
    whole = scores["all"]["metrics"][found["measure"]]["value"] if scores["all"] else None
    for site, row in scores["sites"].items() if whole is not None else ():
        own = row["metrics"][found["measure"]] if row else None
        if own and own["low"] is not None and (own["high"] < whole if found["higher"] else own["low"] > whole):
            side = "below" if found["higher"] else "above"
            out.append(
                f"At {site} the model seems to do worse: its interval, {between(own)}, lies wholly {side} the value of all sites; of "
                f"{sum(bool(r) for r in scores['sites'].values())} sites one may by chance."
            )
    aside = [s for s, row in found["sites"].items() if row["aside"]]
    if aside:
        out.append(f"Persons whose images were unusable are in no measure ({join(aside)}): see the table of sites.")
    return out


def _unknown(record: Record, found: Found) -> list[str]:
    out = ["The record does not say who the persons are, how they were chosen, how the outcome was established, or whether data are real."]
    out += make_task(record.study).words.unknown
    silent = [s for s, row in found["sites"].items() if row["agreed"] and row["policy"] is None]
    if silent:
        out.append(f"Policies were not disclosed by {join(silent)}.")
    return out
