"""A model card in Markdown, from the record of a run.

    text = model_card(read_record(run))

Headings: Mitchell et al. 2019, "Model Cards for Model Reporting" (FAT* 2019), section 4. A line that the record cannot answer is marked
for the author to complete.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedml.experiments.checklists.facts import Fact, facts_of, formatted, held_out
from fedml.experiments.checklists.fill import AUTHOR, markdown
from fedml.experiments.runs.record import Record
from fedml.tasks.registry import make_task

# Heading -> its lines: the topic, and the facts that answer it (none: the author must complete the line).
SECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "Model details": {
        "Identity": ("identity", "began", "ended"),
        "Kind": ("task", "model", "output"),
        "Training": ("training", "initialisation", "augmentation", "selection"),
        "File": ("file",),
        "Software": ("versions", "code"),
        "Developers": (),
        "Licence, citation, contact": (),
    },
    "Intended use": {
        "Question": ("question",),
        "Data": ("purpose",),
        "Intended uses and users": (),
        "Out-of-scope uses": (),
    },
    "Factors": {
        "Hospitals": ("sites",),
        "Groups of persons": ("named_groups",),
        "Instrumentation and environment": (),
    },
    "Metrics": {
        "Measures": ("measures",),
        "Decision thresholds": ("utility",),
        "Reasons for the measures": (),
    },
    "Evaluation data": {
        "Outcome": ("outcome",),
        "Persons": ("persons", "events"),
        "Held-out persons": ("split", "disjoint"),
        "Source": ("external",),
        "Reasons for these data": (),
    },
    "Training data": {
        "Hospitals and rounds": ("roster", "participation"),
        "Inputs": ("inputs", "columns"),
        "Preprocessing": ("preprocessing", "missing"),
        "Checks and excluded images": ("checks", "quarantined"),
        "Digests of the data": ("digests",),
        "Characteristics of the persons": ("characteristics",),
        "Size of the sample": ("sample_size",),
        "Selection of the persons": (),
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
        "Limitations for users": (),
        "Recommendations": (),
    },
}


def model_card(record: Record, more: Mapping[str, Fact] | None = None) -> str:
    """The model card of the run's model, as Markdown.

    Args:
        more: facts in addition to those of the record, such as ``intervals`` and ``calibration``.

    Raises:
        InputError: the run's log lacks an event that every run writes.
    """
    facts = {**facts_of(record), **(more or {})}
    out = [f"# Model card: {record.study.study.name}", ""]
    if "file" not in facts:
        out += [f"**This run has no finished model: its status is {record.status}.**", ""]
    out += ["Each line is from the record of the run, with its source in parentheses, or must be completed by the author."]
    for heading, lines in SECTIONS.items():
        out += ["", f"## {heading}", "", *(_table(record) if heading == "Quantitative analyses" else ())]
        for about, names in lines.items():
            known = [facts[name] for name in names if name in facts]
            places = ", ".join(dict.fromkeys(f"`{p}`" for fact in known for p in fact.pointers))
            answer = f"{' '.join(markdown(fact.text) for fact in known)} ({places})" if known else f"**{AUTHOR}**"
            out.append(f"- {about}: {answer}")
    return "\n".join(out) + "\n"


def _table(record: Record) -> list[str]:
    """A table of the measures on held-out persons: all sites, each site, each subgroup. The author's mark if none were evaluated."""
    part, scores = held_out(record)
    if not scores:
        return [f"Performance: **{AUTHOR}**", ""]
    groups = record.final.groups
    rows = {"all sites": scores["all"], **scores["sites"], **{label: group["all"] for label, group in groups.items()}}
    names, task = list(scores["all"]), make_task(record.study)
    cells = [[markdown(title), *(formatted(task, name, values.get(name)) for name in names)] for title, values in rows.items()]
    places = [f"events.jsonl#final/metrics/{part}", *(["events.jsonl#final/groups"] if groups else [])]
    return [
        f"| {' | '.join([part, *map(markdown, names)])} |", f"|---|{'---:|' * len(names)}",
        *(f"| {' | '.join(row)} |" for row in cells), "", f"({', '.join(f'`{place}`' for place in places)})", "",
    ]  # fmt: skip
