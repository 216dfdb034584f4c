"""The framework in a notebook or a script: the same functions as the commands.

    import fedml

    study = fedml.Study.read("heart.toml").set("training.lr", 0.1)
    run = fedml.run(study, sites="out/heart")
    run.metrics                                  # {"auroc": 0.878, ...} of the test persons of all sites
    run.curves                                   # a table: a row for each round
    run.model.predict(table)                     # raw columns in, a table of predictions out
    run.report()                                 # the report, shown in the notebook
    fedml.compare(study, sites="out/heart", baselines="pooled,local", seeds="0-2").table
    fedml.sweep(study, sites="out/heart", grid={"lr": [0.001, 0.01]}, seeds=range(3)).table
    fedml.client(study, "out/heart/oslo").train()

A failed run raises ``fedml.errors.RunError``, a study or data that cannot be used ``fedml.errors.InputError``, with the command's sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from fedml.errors import InputError, RunError
from fedml.experiments.keys.overrides import set_key
from fedml.experiments.runs.hints import mean_loss
from fedml.experiments.runs.launch import find, launch, make_console
from fedml.experiments.runs.record import Record, read_record
from fedml.experiments.tracked.pages import write_pages
from fedml.study.read import read_study
from fedml.study.study import Study as Plan
from fedml.study.study import validate

if TYPE_CHECKING:
    import pandas as pd

    from fedml.clients.site.manifest import Site
    from fedml.cohort.persons import Cohort
    from fedml.experiments.sweep.result import Result
    from fedml.models.fusion import CohortModel


def _changed(plan: Plan, changes: Mapping[str, Any]) -> Plan:
    sections = plan.model_dump(mode="json")
    for key, value in changes.items():
        *path, last = key.split(".")
        place = sections
        for name in path:
            if not isinstance(place.get(name), dict):
                place[name] = {}
            place = place[name]
        place[last] = value
    return validate(Plan, sections, f"the study with {', '.join(f'{key} = {value}' for key, value in changes.items())}")


@dataclass(frozen=True)
class Study:
    """A plan. ``plan``: its checked sections; ``file``: where it was read from. It does not change; ``set`` gives another one."""

    plan: Plan
    file: Path | None = None

    @classmethod
    def read(cls, path: str | Path, **changes: Any) -> Study:
        """The study in a TOML file. Raises ``InputError``: it cannot be read, or is no valid study."""
        return cls(read_study(Path(path), overrides={set_key(key, key): value for key, value in changes.items()}), Path(path))

    @classmethod
    def of(cls, sections: Mapping[str, Any]) -> Study:
        """The study with these sections, as in a study file: ``{"study": {"name": "heart"}, "cohort": {...}, ...}``."""
        return cls(validate(Plan, dict(sections), "the study"))

    def set(self, key: str, value: Any) -> Study:
        """The study with ``section.key``, or the only ``key`` of this name, changed. Raises ``InputError``: none, or it does not fit."""
        return Study(_changed(self.plan, {set_key(key, f'set("{key}", ...)'): value}), self.file)

    def check(self) -> str:
        """The plan as text, as ``fedml check`` prints it."""
        from fedml.strategies.describe import describe

        return describe(self.plan)

    def __str__(self) -> str:
        return self.check()


class Model:
    """A finished run's model. Final."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _restored(self) -> tuple[Plan, CohortModel]:
        from fedml.runs.restore import restore

        return restore(self.folder)

    @property
    def network(self) -> CohortModel:
        """The ``torch.nn.Module``."""
        return self._restored[1]

    def predict(self, inputs: Any) -> pd.DataFrame:
        """One row a person: ``predicted``, of classes ``probability_<class>`` too.

        Args:
            inputs: raw values, without any preparation: a table with the study's columns, or a dictionary of inputs by name.
        """
        from fedml.tracking.scoring import score

        return score(*self._restored, inputs)


@dataclass(frozen=True)
class Page:
    """A report. In a notebook it is shown; ``file``: the HTML file."""

    file: Path

    def _repr_html_(self) -> str:
        from html import escape

        page = escape(self.file.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:800px;border:0" sandbox></iframe>'


@dataclass(frozen=True)
class Run:
    """A run that finished. ``folder``: its record. ``mlflow_run``: its id in MLflow; None: not recorded there."""

    folder: Path
    mlflow_run: str | None = None

    @cached_property
    def record(self) -> Record:
        """The whole record (``fedml.experiments.runs.record.Record``)."""
        return read_record(self.folder)

    @property
    def study(self) -> Study:
        """The study that ran."""
        return Study(self.record.study, self.folder / "study.toml")

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of all sites' test persons together; of the validation persons where there are no test persons."""
        final = self.record.final.metrics
        return dict(final["test" if "test" in final else "val"]["all"])

    @cached_property
    def sites(self) -> pd.DataFrame:
        """The same metrics for each site: a row a site."""
        import pandas as pd

        final = self.record.final.metrics
        return pd.DataFrame.from_dict(dict(final["test" if "test" in final else "val"]["sites"]), orient="index")

    @cached_property
    def curves(self) -> pd.DataFrame:
        """A row for each round: ``train_loss`` over the persons of all sites, and ``val_...`` of the model as it was before the round."""
        import pandas as pd

        rows = []
        for event in self.record.rounds:
            scores = {f"{part}_{name}": value for part, found in event.metrics.items() for name, value in found["all"].items()}
            rows.append(
                {"round": event.round, "seconds": event.seconds, "sites": len(event.sites), "train_loss": mean_loss(event), **scores}
            )
        return pd.DataFrame(rows).set_index("round") if rows else pd.DataFrame()

    @cached_property
    def model(self) -> Model:
        """The trained model."""
        return Model(self.folder)

    def predictions(self, sites: str | Path) -> pd.DataFrame:
        """A row for each person whose data are in ``sites``: site, id, part, label, and the model's answer."""
        from fedml.experiments.models.predictions import predictions

        return predictions(self.folder, find(Path(sites), self.record.study, print))

    def report(self, out: str | Path | None = None) -> Page:
        """Writes the report (one HTML file; default: report.html in the run's folder)."""
        from fedml.experiments.report.page import write_report

        file = self.folder / "report.html" if out is None else Path(out)
        write_report(self.record, file)
        return Page(file)


def run(
    study: Study, sites: str | Path | None = None, *, engine: str = "local", superlink: str | None = None, runs: str | Path = "fedml-runs",
    track: bool = True,
) -> Run:  # fmt: skip
    """Runs the study, shows its progress and records it, as ``fedml run`` does.

    Args:
        sites: folder with one subfolder for each site. superlink: in its place, for ``engine="deployment"``.
        track: record it in MLflow (``MLFLOW_TRACKING_URI``; default: mlflow.db in the current folder).

    Raises:
        RunError: the run failed, with its reason. InputError: options or data that cannot be used.
    """
    from fedml.experiments.options import Where

    where = Where(None if sites is None else Path(sites), engine, superlink, Path(runs))
    launched = launch(study.file, study.plan, where, make_console(False), track=track, write=write_pages)
    if launched.outcome.status != "finished":
        raise RunError(launched.outcome.reason)
    return Run(launched.outcome.run, launched.mlflow_run)


def open_run(folder: str | Path) -> Run:
    """A run that was made before, from its folder."""
    return Run(read_record(Path(folder)).run)


@dataclass(frozen=True)
class Comparison:
    """``rows``: one for each way to train, as ``fedml compare --json`` gives them."""

    rows: list[dict[str, Any]]

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row for each way to train: the watched metric with its interval over persons, and the difference from the first row."""
        import pandas as pd

        found = []
        for row in self.rows:
            gap = row["difference"] or {}
            watched = row["watched"]
            found.append(
                {
                    "trained": row["who"], watched["metric"]: watched["mean"], "low": watched["low"], "high": watched["high"],
                    "difference": gap.get("value"), "difference_low": gap.get("low"), "difference_high": gap.get("high"), "p": gap.get("p"),
                }
            )  # fmt: skip
        return pd.DataFrame(found).set_index("trained")

    def _repr_html_(self) -> str:
        html: str = self.table.to_html(float_format="{:.3f}".format, na_rep="")
        return html


def compare(
    what: Study | Sequence[Run | str | Path], sites: str | Path | None = None, *, baselines: str = "pooled,local", seeds: str = "",
    runs: str | Path = "fedml-runs",
) -> Comparison:  # fmt: skip
    """Compares federated training with training on pooled data and at each site alone; or runs with each other, as ``fedml compare`` does.

    Args:
        what: a study, which needs ``sites``; or runs, which are compared person by person if ``sites`` is given.
        seeds: one, a range such as 0-4, or a list; default: the study's.
    """
    from fedml.experiments.compare.tables import summarise
    from fedml.experiments.compare.train import compare as make
    from fedml.experiments.compare.train import compare_runs, parse_baselines, parse_seeds

    console = make_console(False)
    folder = None if sites is None else Path(sites)
    if not isinstance(what, Study):
        return Comparison(summarise(*compare_runs([r.folder if isinstance(r, Run) else Path(r) for r in what], folder, console)))
    if folder is None:
        raise InputError("compare of a study needs sites: give the folder with one subfolder for each site.")
    plans = [what.set("study.seed", seed).plan for seed in parse_seeds(seeds, what.plan.study.seed)]
    found = find(folder, what.plan, print)
    return Comparison(summarise(what.plan, make(plans, found, parse_baselines(baselines), None, Path(runs), console)))


class Trying(TypedDict, total=False):
    """Options of ``sweep``: combinations to draw, or for Optuna to find; folder of the runs; record in MLflow; do not ask about privacy."""

    random: int
    optuna: int
    runs: str | Path
    track: bool
    yes: bool


@dataclass(frozen=True)
class Sweep:
    """A finished sweep. ``result``: all of it (``fedml.experiments.sweep.result``); ``text``: the choice, and what it is worth."""

    result: Result
    text: str

    @property
    def table(self) -> pd.DataFrame:
        """A row for each combination, the chosen one first: values, the mean validation metric with its interval, its spread over seeds."""
        return self.result.frame()

    @property
    def best(self) -> dict[str, Any]:
        """The values that validation persons chose."""
        return {} if self.result.best is None else dict(self.result.best.tried.point)

    @property
    def runs(self) -> list[Run]:
        """The runs of the choice, one for each seed."""
        return [] if self.result.best is None else [Run(folder) for folder in self.result.best.runs]

    @property
    def test(self) -> dict[str, float | None]:
        """Test metric of the choice: value, low, high; the mean over seeds."""
        return {} if self.result.test is None else self.result.test.plain()

    def __str__(self) -> str:
        return self.text


def sweep(study: Study, sites: str | Path, grid: Mapping[str, Any], seeds: Iterable[int] = (), **options: Unpack[Trying]) -> Sweep:
    """Runs the study with several values of some keys and chooses the best by validation persons alone, as ``fedml sweep`` does.

    Args:
        grid: key -> list of values; with ``random`` or ``optuna`` also ``"1e-4..1e-1"``. seeds: of each combination; default: the study's.

    Raises:
        RunError: no combination has a value of the validation metric. InputError: as ``run``, before anything is started.
    """
    from fedml.experiments.sweep.commands import How, perform
    from fedml.experiments.sweep.plan import Search
    from fedml.experiments.sweep.plan import Sweep as Planned
    from fedml.experiments.sweep.result import sentences
    from fedml.experiments.sweep.values import space_of

    chosen = tuple(dict.fromkeys(seeds)) or (study.plan.study.seed,)
    search = Search(space_of(grid.items()), chosen, options.get("random", 0), options.get("optuna", 0))
    planned = Planned(study.plan, lambda changes: _changed(study.plan, changes), search)
    how, runs = How(options.get("track", True), options.get("yes", False)), Path(options.get("runs", "fedml-runs"))
    result, undelivered = perform(planned, (Path(sites), runs), study.file, how, console := make_console(False))
    if undelivered:
        console.print(undelivered, markup=False, soft_wrap=True)
    return Sweep(result, "\n".join(sentences(result)))


class Client:
    """One site's work in this process, for a debugger and for trying a network: no server, no gate, nothing is recorded. Final.

    Constants are those of this site alone (in a federation they are of all sites), and weights start from the study's seed.
    """

    def __init__(self, plan: Plan, site: Site) -> None:
        self.plan, self.site = plan, site

    @cached_property
    def cohort(self) -> Cohort:
        """The persons that the study would use; ``cohort.batch(rows)`` is what the network gets."""
        from fedml.clients.site.read import load_cohort
        from fedml.cohort.standard import standardise_site

        smallest = max(self.plan.policy.min_count, self.site.manifest.policy.min_count)
        return standardise_site(load_cohort((str(self.site.file),), self.plan), self.plan, smallest)

    @cached_property
    def model(self) -> CohortModel:
        """The network with its first weights and this site's constants."""
        from fedml.cohort.variants.keys import to_text
        from fedml.cohort.variants.model import Dosages
        from fedml.learning.statistics import cohort_sums, constants_from, neutral_constants
        from fedml.modalities.layout import make_layout
        from fedml.models.fusion import build_model, load

        if self.plan.cohort.image is not None and self.plan.cohort.image.percentiles:
            raise InputError("[cohort.image] percentiles need all sites: set window = [low, high] to try one site alone.")
        dosages = self.cohort.input("variants", Dosages)
        panel = b"" if dosages is None else to_text(dosages.keys)
        model = build_model(self.plan, make_layout(self.plan, self.cohort.image_shape, panel))
        sums = cohort_sums(self.cohort, self.plan.model.task, without=self.plan.cohort.by_site)
        constants = {**constants_from(sums), **neutral_constants(self.plan)}
        load({k: v for k, v in model.state_dict().items() if k in constants}, constants)
        return model

    def train(self, *, seed: int = 0) -> float:
        """Trains ``model`` for one round of the study on this site's training persons; returns the mean loss over them."""
        from fedml.learning.training import train
        from fedml.tasks.registry import make_task

        done = train(self.model, self.cohort, self.plan.training, make_task(self.plan), seed=seed)
        return done.loss_sum / max(done.seen, 1)

    def evaluate(self, part: str = "test") -> dict[str, float]:
        """The metrics of ``model`` over this site's persons in ``part``."""
        from fedml.learning.training import evaluate
        from fedml.tasks.registry import make_task

        task = make_task(self.plan)
        return dict(task.metrics(evaluate(self.model, self.cohort, part, task)))  # type: ignore[arg-type]


def client(study: Study, site: str | Path) -> Client:
    """One site's work in this process: ``fedml.client(study, "out/heart/oslo").train()``."""
    from fedml.clients.site.manifest import check_roster, read_site

    found = read_site(Path(site))
    check_roster(found, study.plan)
    return Client(study.plan, found)
