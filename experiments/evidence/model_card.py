"""A model card in Markdown, from a run's record alone.

    text = model_card(read_record(run))

Headings: Mitchell et al. 2019, "Model Cards for Model Reporting" (FAT* 2019), section 4. What the record does not know is marked as the
author's; nothing else is written.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedml.experiments.checklists.facts import Fact, facts_of, held_out, shown
from fedml.experiments.checklists.fill import AUTHOR, markdown
from fedml.experiments.runs.record import Record

# Heading -> its lines: what it is about, and the facts that answer it (none: only the author can).
SECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "Model details": {
        "Identity": ("identity", "began", "ended"),
        "Kind": ("task", "model", "output"),
        "Training": ("training", "initialisation", "augmentation", "selection"),
        "File": ("file",),
        "Software": ("versions", "code"),
        "Who made it": (),
        "Licence, citation, contact": (),
    },
    "Intended use": {
        "Question": ("question",),
        "Data": ("purpose",),
        "Uses and users that are intended": (),
        "Uses that are not": (),
    },
    "Factors": {
        "Hospitals": ("sites",),
        "Groups of persons": ("named_groups",),
        "Devices and surroundings": (),
    },
    "Metrics": {
        "What was measured": ("measures",),
        "Thresholds for decisions, and why these measures": (),
    },
    "Evaluation data": {
        "What is predicted": ("outcome",),
        "Who": ("persons", "events"),
        "How they were held out": ("split", "disjoint"),
        "Where they come from": ("external",),
        "Why these data": (),
    },
    "Training data": {
        "Hospitals and rounds": ("roster", "participation"),
        "What is read": ("inputs", "columns"),
        "Preprocessing": ("preprocessing", "missing"),
        "Checks, and what was set aside": ("checks", "quarantined"),
        "Identity of the data": ("digests",),
        "Who the persons are, and how they were chosen": (),
    },
    "Quantitative analyses": {
        "Groups of persons": ("groups",),
        "Uncertainty": ("intervals",),
        "Calibration": ("calibration",),
    },
    "Ethical considerations": {
        "Privacy": ("privacy",),
        "Limits of the study and of its sites": ("limits", "policies", "deidentification"),
        "Approval and consent": (),
        "Risks and harms": (),
    },
    "Caveats and recommendations": {
        "Limits that a user must know": (),
        "Recommendations": (),
    },
}


def model_card(record: Record, more: Mapping[str, Fact] | None = None) -> str:
    """The card of the run's model.

    Args:
        more: facts beside those of the record, such as ``intervals`` and ``calibration``.

    Raises:
        InputError: the run's log lacks what every run writes.
    """
    facts = {**facts_of(record), **(more or {})}
    out = [f"# Model card: {record.study.study.name}", ""]
    if "file" not in facts:
        out += [f"**This run holds no finished model: its status is {record.status}.**", ""]
    out += ["Each line is from the record of the run, at the place named behind it, or it is the author's."]
    for heading, lines in SECTIONS.items():
        out += ["", f"## {heading}", "", *(_table(record) if heading == "Quantitative analyses" else ())]
        for about, names in lines.items():
            known = [facts[name] for name in names if name in facts]
            places = ", ".join(dict.fromkeys(f"`{p}`" for fact in known for p in fact.pointers))
            answer = f"{' '.join(markdown(fact.text) for fact in known)} ({places})" if known else f"**{AUTHOR}**"
            out.append(f"- {about}: {answer}")
    return "\n".join(out) + "\n"


def _table(record: Record) -> list[str]:
    """Measures on held-out persons of all sites, of each site and of each subgroup; nothing where none were evaluated."""
    part, scores = held_out(record)
    if not scores:
        return [f"Performance: **{AUTHOR}**", ""]
    groups = record.final.groups
    rows = {"all sites": scores["all"], **scores["sites"], **{label: own["all"] for label, own in groups.items()}}
    names = list(scores["all"])
    cells = [[markdown(who), *(shown(name, own.get(name)) for name in names)] for who, own in rows.items()]
    places = [f"events.jsonl#final/metrics/{part}", *(["events.jsonl#final/groups"] if groups else [])]
    return [
        f"| {' | '.join([part, *map(markdown, names)])} |", f"|---|{'---:|' * len(names)}",
        *(f"| {' | '.join(row)} |" for row in cells), "", f"({', '.join(f'`{place}`' for place in places)})", "",
    ]  # fmt: skip
