"""Small runs of every kind that a report can be of, and a reader of its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from fedml.errors import RunError
from fedml.experiments.runs.record import Record, read_record
from fedml.experiments.runs.run import new_run, run_nodes
from fedml.study.study import Study
from tests.conftest import clinical_site, make_study, write_csv, write_manifest

EVIL = '<script>alert("q")</script> & <img src="http://example.org/x.png" onerror=alert(1)>?'
EVIL_CLASS = "</script><b>ill"
_VOID = {"meta", "link", "br", "img", "hr", "input"}


def record_of(study: Study, manifests: Sequence[Path], folder: Path) -> Record:
    run = new_run(study, folder, None, engine="local", job="train")
    run_nodes(study, [{"manifest": str(m)} for m in manifests], run)
    return read_record(run)


def two_classes(folder: Path) -> Record:
    """Names that try to be markup; subgroups of which one is too small anywhere; one site with few cases."""
    made = []
    for seed, (name, persons) in enumerate((("a", 90), ("b-with-quite-a-long-name", 70))):
        place = folder / name
        place.mkdir(parents=True)
        rng = np.random.default_rng(seed)
        ids = [f"{name}{k:04d}" for k in range(persons)]
        x = rng.normal(0, 1, (3, persons))
        y = [EVIL_CLASS if v else "well" for v in x[0] + rng.normal(0, 0.7, persons) > 0.3 + seed]
        group = ["rare" if k < 2 else "m" if v else "f" for k, v in enumerate(rng.random(persons) < 0.5)]
        write_csv(place / "persons.csv", ids, {"y": y, "sex": group})
        write_csv(place / "clinical.csv", ids, {f"x{k + 1}": x[k] for k in range(3)})
        (place / "site.toml").write_text(
            f'[site]\nname = "{name}"\n[data]\npersons = "persons.csv"\npublic = true\nclinical = {{ path = "clinical.csv" }}\n'
            "[policy]\nmin_persons = 1\nmin_count = 5\n"
        )
        made.append(place / "site.toml")
    study = make_study(
        sites=("a", "b-with-quite-a-long-name"), study__question=EVIL, cohort__classes=["well", EVIL_CLASS],
        evaluation__subgroups={"sex": ["f", "m", "rare"]}, federation__rounds=3, cohort__split={"train": 0.4, "val": 0.2, "test": 0.4},
    )  # fmt: skip
    return record_of(study, made, folder / "runs")


def three_classes(folder: Path) -> Record:
    made = [clinical_site(folder / n, n, 60, k, labels=np.random.default_rng(k).integers(0, 3, 60)) for k, n in enumerate("ab")]
    return record_of(make_study(cohort__classes=[0, 1, 2]), made, folder / "runs")


def regression(folder: Path) -> Record:
    made = [clinical_site(folder / n, n, 60, k, labels=np.random.default_rng(k).normal(5000, 900, 60)) for k, n in enumerate("ab")]
    return record_of(make_study(model__task="regression", study__question="How much?"), made, folder / "runs")


def ordinal(folder: Path) -> Record:
    made = [clinical_site(folder / n, n, 60, k, labels=np.random.default_rng(k).integers(0, 3, 60)) for k, n in enumerate("ab")]
    return record_of(make_study(model__task="ordinal", cohort__classes=[0, 1, 2], study__question="How bad?"), made, folder / "runs")


def count(folder: Path) -> Record:
    made = [clinical_site(folder / n, n, 60, k, labels=np.random.default_rng(k).poisson(3, 60)) for k, n in enumerate("ab")]
    return record_of(make_study(model__task="count", study__question="How many?"), made, folder / "runs")


def multilabel(folder: Path) -> Record:
    """Two labels, one with empty cells."""
    made = []
    for seed, name in enumerate("ab"):
        rng = np.random.default_rng(seed)
        made.append(clinical_site(folder / name, name, 60, seed))
        table = {"y": rng.integers(0, 2, 60), "z": [None if k % 7 == 0 else int(v) for k, v in enumerate(rng.integers(0, 2, 60))]}
        write_csv(folder / name / "persons.csv", [f"{name}{k:04d}" for k in range(60)], table)
    study = make_study(model__task="multilabel", cohort__target=["y", "z"], study__question="Which?")
    return record_of(study, made, folder / "runs")


def survival(folder: Path) -> Record:
    """Times in days, of whom about half are censored, and a late event that competes."""
    made = []
    for seed, name in enumerate("ab"):
        rng = np.random.default_rng(seed)
        made.append(clinical_site(folder / name, name, 90, seed))
        event, lost = rng.exponential(200, 90) + 1, rng.uniform(20, 500, 90)
        table = {
            "t": np.minimum(event, lost).round(1).tolist(),
            "e": [int(d < c) if d < 400 else 2 for d, c in zip(event, lost, strict=True)],
        }
        write_csv(folder / name / "persons.csv", [f"{name}{k:04d}" for k in range(90)], table)
    study = make_study(
        model__task="survival", study__question="How long?", cohort__split={"train": 0.4, "val": 0.2, "test": 0.4},
        cohort__target={"time": "t", "event": "e", "events": {"relapse": 1, "death": 2}, "event_of_interest": "relapse"},
        survival={"time_unit": "days", "grid": "30 days", "until": 360, "horizons": [180, 360]},
    )  # fmt: skip
    return record_of(study, made, folder / "runs")


def segmentation(folder: Path) -> Record:
    made = []
    for seed, name in enumerate("ab"):
        rng, persons = np.random.default_rng(seed), 16
        place, ids = folder / name, [f"{name}{k:04d}" for k in range(16)]
        place.mkdir(parents=True)
        masks = np.zeros((persons, 12, 12), np.uint8)
        for k, mask in enumerate(masks):
            mask[2:6, 2 : 5 + k % 4] = 1
            mask[8:11, 3:9] = 2 if k % 3 else 0
        images = (60 * masks + rng.normal(50, 10, masks.shape)).clip(0, 255).astype(np.uint8)
        write_csv(place / "persons.csv", ids, {"y": [0] * persons})
        np.savez(place / "images.npz", ids=np.array(ids), images=images, masks=masks)
        made.append(write_manifest(place, name, image='{ path = "images.npz", format = "npz" }'))
    plan = {"cohort__classes": [0, 1, 2], "model__task": "segmentation", "model__segmentation": {"channels": [4, 8], "window": [12, 12]}}
    study = make_study(("image",), **plan, training__lr=0.02, training__batch_size=8, cohort__split={"train": 0.4, "val": 0.1, "test": 0.5})
    return record_of(study, made, folder / "runs")


def private(folder: Path, *, noised: bool = False) -> Record:
    made = [clinical_site(folder / n, n, 80, k) for k, n in enumerate("ab")]
    plan: dict[str, Any] = {"unit": "patient", "epsilon": 2.0, "delta": 1e-4, "clipping_norm": 0.5, "persons": {"a": 50, "b": 50}}
    plan["ranges"] = {"x1": [0, 6], "x2": [-7, 5], "x3": [0, 200]}
    plan |= {"metrics": "private"} if noised else {}
    study = make_study(
        privacy=plan, cohort__split={"train": 0.6, "val": 0.0, "test": 0.4}, training__optimizer="sgd", training__batch_size=0
    )
    return record_of(study, made, folder / "runs")


def missing(folder: Path, quorum: int) -> Record:
    """Site b is not there: with a quorum of 1 the run goes on, with one of 2 it fails."""
    manifest = clinical_site(folder / "a", "a", 60, 1)
    study = make_study(federation__quorum=quorum, federation__timeout=6 if quorum == 1 else 1, study__question=EVIL)
    run = new_run(study, folder / "runs", None, engine="local", job="train")
    try:
        run_nodes(study, [{"manifest": str(manifest)}], run)
    except RunError:
        assert quorum == 2
    record = read_record(run)
    assert record.status == ("finished" if quorum == 1 else "failed")
    return record


KINDS: dict[str, Callable[[Path], Record]] = {
    "two_classes": two_classes, "three_classes": three_classes, "regression": regression, "segmentation": segmentation,
    "ordinal": ordinal, "count": count, "multilabel": multilabel, "survival": survival,
    "private": private, "noised": lambda folder: private(folder, noised=True), "missing": lambda folder: missing(folder, 1),
    "failed": lambda folder: missing(folder, 2),
}  # fmt: skip


def records(shared: Path) -> dict[str, Record]:
    """A record of each kind, made once a session: workers that want them too wait for the first, and read what it made. Leave them as
    they are."""
    out = {}
    with FileLock(shared / "report-runs.lock"):
        for kind, make in KINDS.items():
            place = shared / "report-runs" / kind
            if not (place / "run.txt").exists():
                place.mkdir(parents=True)
                (place / "run.txt").write_text(str(make(place).run), encoding="utf-8")
            out[kind] = read_record(Path((place / "run.txt").read_text(encoding="utf-8")))
    return out


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    path: tuple[str, ...]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """The elements of a page with all text inside them; an element that is not closed, or closes another, is an error."""

    elements: list[Element] = field(default_factory=list)
    open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, {k: v or "" for k, v in attrs}, tuple(e.tag for e in self.open))
        self.elements.append(made)
        if tag not in _VOID:
            self.open.append(made)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {k: v or "" for k, v in attrs}, tuple(e.tag for e in self.open)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def all(self, *tags: str) -> list[Element]:
        return [e for e in self.elements if e.tag in tags]

    def section(self, name: str) -> str:
        return next((" ".join(e.text.split()) for e in self.elements if e.attributes.get("id") == name), "")


def parsed(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert not page.open
    return page
