"""The run's record in MLflow, made from the run's folder: one parent run, one child a site. The only file that talks to MLflow.

    deliver(run, study)    # at once, or while the run goes on: `fedml run` has a second process that does

Metric names: ``<part>/<metric>`` (val/auroc), ``train/loss``, ``round/seconds``; a step is the round that the model has behind it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedml.runlog import EVENTS, GWAS_FILES, LAYOUT, MODEL, PANEL, STUDY, read_events
from fedml.study import Study

_TICK_SECONDS, _PAUSE_SECONDS = 0.1, 1.0  # between two looks at the events; between two writes of metrics
DEFAULT_STORE = "sqlite:///mlflow.db"
PACKAGES = ("fedml-cohorts", "flwr", "torch", "monai", "numpy", "pysam", "pandas", "mlflow", "ray")


# A server that is down is given up on in seconds, not in MLflow's minutes: the run's folder has everything.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")


def store() -> str:
    """The tracking store: ``MLFLOW_TRACKING_URI``, or ``mlflow.db`` here."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _flat(section: str, value: Any) -> dict[str, str]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in _flat(f"{section}.{key}" if section else key, inner).items()}
    return {section: str(value)[:6000]}


def _unprotected(study: Study) -> str:
    """What stands until the run has said more."""
    return "none: no differential privacy" if study.privacy.unit == "none" else f"unit {study.privacy.unit}: not counted yet"


def _spans(rounds: Sequence[int]) -> str:
    """Round numbers with runs of them as a span: ``1-3, 7``."""
    out: list[list[int]] = []
    for number in rounds:
        if out and number == out[-1][-1] + 1:
            out[-1] = [out[-1][0], number]
        elif not out or number != out[-1][-1]:
            out.append([number])
    return ", ".join("-".join(map(str, span)) for span in out)


class Tracker:
    """Writes events into MLflow as they come. Raises what MLflow raises: the run itself is another process and does not notice."""

    def __init__(self, run: Path, study: Study) -> None:
        self.run, self.study = run, study
        self.parent = ""
        self.children: dict[str, str] = {}
        self.status = "RUNNING"
        self.refused: dict[str, dict[str, list[int]]] = {}  # site -> reason -> rounds
        self.heads: dict[str, tuple[str, int]] = {}  # of the sites' journals, as the last reply told
        self._rows: dict[str, list[Any]] = defaultdict(list)
        self._written = 0.0

    def __call__(self, events: Sequence[dict[str, Any]]) -> None:
        """Delivers ``events``: one batch for the parent and one for each site, however many rounds they span."""
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        client = MlflowClient(store())
        for event in events:
            stamp = int(event["time"] * 1000)

            def put(run_id: str, name: str, value: Any, step: int, stamp: int = stamp) -> None:
                if value is not None:
                    self._rows[run_id].append(Metric(name, float(value), stamp, step))

            match event["event"]:
                case "start":
                    self._open(client, event)
                case "agreed":
                    self._agreed(client, event)
                case "round" | "final":
                    self._round(event, put)
                case "privacy":
                    self._privacy(client, event, put)
                case "checks":
                    client.log_text(self.parent, json.dumps(event["checks"], indent=1), "record/checks.json")
                case "gwas":
                    self._gwas(client, event, put)
                case "end":
                    self.status = {"finished": "FINISHED", "stopped": "KILLED"}.get(event["status"], "FAILED")
                    if event["reason"]:
                        client.set_tag(self.parent, "fedml.reason", event["reason"][:5000])
        if self.status != "RUNNING" or time.monotonic() - self._written > _PAUSE_SECONDS:
            self._write(client)

    def _write(self, client: Any) -> None:
        for run_id, metrics in self._rows.items():
            for at in range(0, len(metrics), 1000):  # MLflow's limit a batch
                client.log_batch(run_id, metrics=metrics[at : at + 1000])
        self._rows.clear()
        self._written = time.monotonic()

    def _open(self, client: Any, event: dict[str, Any]) -> None:
        about = self.study.study
        experiment = client.get_experiment_by_name(about.name)
        number = experiment.experiment_id if experiment else client.create_experiment(about.name)
        common = {
            "fedml.run_id": event["run_id"],
            "fedml.study": about.name,
            "fedml.study_sha256": self.study.sha256,
            "fedml.engine": event["engine"],
            "fedml.job": event.get("job", "train"),
            "fedml.git_commit": event["git_commit"],
        }
        told = {"fedml.question": about.question, "fedml.purpose": about.purpose, "fedml.privacy": _unprotected(self.study)}
        packages = {f"fedml.version.{k}": v for k, v in versions().items()}
        start = int(event["time"] * 1000)
        made = client.create_run(number, start, tags={**common, **told, **packages}, run_name=event["run_id"])
        self.parent = made.info.run_id
        from mlflow.entities import Param

        params = _flat("", self.study.model_dump(mode="json"))
        client.log_batch(self.parent, params=[Param(k, v) for k, v in sorted(params.items())])
        for site in self.study.federation.sites:
            tags = {"mlflow.parentRunId": self.parent, "fedml.site": site, **common}
            self.children[site] = client.create_run(number, start, tags=tags, run_name=f"{event['run_id']}/{site}").info.run_id

    def _agreed(self, client: Any, event: dict[str, Any]) -> None:
        from mlflow.entities import Param

        for site, parts in event["persons"].items():
            told = [Param(f"persons.{part}", str(sum(n))) for part, n in parts.items()]
            told += [Param(f"persons.{part}.by_class", str(n)) for part, n in parts.items()]
            told += [Param(f"variants.{what}", str(n)) for what, n in event["matching"].get(site, {}).items()]
            client.log_batch(self.children[site], params=told)
        client.log_batch(
            self.parent, params=[Param("variants.panel", str(event["variants"])), Param("parameters", str(event["parameters"]))]
        )

    def _privacy(self, client: Any, event: dict[str, Any], put: Any) -> None:
        if event["unit"] == "none":
            return
        client.set_tag(self.parent, "fedml.privacy", event["sentence"][:5000])
        for site, told in event["claims"].items():
            run_id = self.children[site] if site else self.parent
            client.set_tag(run_id, "fedml.privacy", told["sentence"][:5000])
            client.set_tag(run_id, "fedml.privacy.events", told["events_json"][:5000])
            put(run_id, "privacy/epsilon", told["epsilon"], self.study.federation.rounds)
        put(self.parent, "privacy/epsilon", event["epsilon"], self.study.federation.rounds)
        put(self.parent, "privacy/delta", event["delta"], self.study.federation.rounds)

    def _gwas(self, client: Any, event: dict[str, Any], put: Any) -> None:
        """Figures of an association study; its table and plots are artifacts of the run."""
        for name in ("lambda", "hits", "tested", "variants", "partly_told", "pca_columns", "pca_angle_rad", "cases", "controls", "seconds"):
            put(self.parent, f"gwas/{name}", event.get(name), 0)
        put(self.parent, "gwas/persons", sum(event["persons"].values()), 0)
        for site, row in event["sites"].items():
            put(self.children[site], "gwas/persons", event["persons"][site], 0)
            if row.get("journal"):
                self.heads[site] = row["journal"]
        if event["top"]:
            best = event["top"][0]
            where = f"{best['chromosome']}:{best['position']} {best['rsid']} {best['effect_allele']}"
            told = f"{where} beta {best['beta']:.4g} p {best['p_value']}"
            client.set_tag(self.parent, "fedml.gwas.strongest", told)
        for name in GWAS_FILES:
            if (self.run / name).exists():
                client.log_artifact(self.parent, str(self.run / name), "gwas")

    def _round(self, event: dict[str, Any], put: Any) -> None:
        # A round's metrics are those of the model it began with.
        behind = event["round"] - (event["event"] == "round")
        for part, scores in event["metrics"].items():
            for name, value in scores["all"].items():
                put(self.parent, f"{part}/{name}", value, behind)
            for site, own in scores["sites"].items():
                for name, value in own.items():
                    put(self.children[site], f"{part}/{name}", value, behind)
            if scores["worst"]:
                for name, value in scores["sites"][scores["worst"]].items():
                    put(self.parent, f"{part}/worst_site/{name}", value, behind)
        put(self.parent, "round/sites", len(event["sites"]), event["round"])
        put(self.parent, "round/seconds", event["seconds"], event["round"])
        trained = [row for row in event["sites"].values() if row.get("seen")]
        if trained:
            loss = sum(row["train_loss"] * row["seen"] for row in trained) / sum(row["seen"] for row in trained)
            put(self.parent, "train/loss", loss, event["round"])
        for way in ("bytes_out", "bytes_in"):
            put(self.parent, f"round/{way}", sum(row[way] for row in event["sites"].values()), event["round"])
        if event["event"] == "round":
            for site, child in self.children.items():
                put(child, "round/took_part", float(site in event["sites"]), event["round"])
        for site, reason in event["refused"].items():
            self.refused.setdefault(site, {}).setdefault(reason, []).append(event["round"])
        for site, row in event["sites"].items():
            if row.get("journal"):
                self.heads[site] = row["journal"]
            for name in ("train_loss", "bytes_out", "bytes_in"):
                put(self.children[site], f"round/{name}", row.get(name), event["round"])

    def close(self) -> str:
        """Artifacts, the model if the run made one, and the status; returns the parent's run id."""
        from mlflow import MlflowClient

        client = MlflowClient(store())
        self._write(client)
        finished = self.status == "FINISHED"
        for name in (EVENTS, STUDY, "study.toml", *((PANEL, LAYOUT) if finished else ())):
            if (self.run / name).exists():
                client.log_artifact(self.parent, str(self.run / name), "record")
        if finished and (self.run / MODEL).exists():
            log_model(self.run, self.study, self.parent)
        for site, (head, count) in self.heads.items():
            client.set_tag(self.children[site], "fedml.journal_head", head)
            client.set_tag(self.children[site], "fedml.journal_entries", str(count))
        for site, reasons in self.refused.items():
            told = "; ".join(f"{reason}: round {_spans(rounds)}" for reason, rounds in reasons.items())
            client.set_tag(self.children[site], "fedml.missed", told[:5000])
        for run_id in (*self.children.values(), self.parent):
            client.set_terminated(run_id, self.status if self.status != "RUNNING" else "FAILED")
        return self.parent


def note_audit(run: Path, record: dict[str, Any]) -> bool:
    """Puts an audit's lower bound beside the claim in the run's MLflow record, with ``audit.json``; False: there is no such record."""
    from mlflow import MlflowClient

    client = MlflowClient(store())
    start = next(e for e in read_events(run)[0] if e["event"] == "start")
    experiment = client.get_experiment_by_name(start["study"])
    words = f"tags.`fedml.run_id` = '{start['run_id']}'"
    found = client.search_runs([experiment.experiment_id], words) if experiment else []
    parent = next((r.info.run_id for r in found if "mlflow.parentRunId" not in r.data.tags), None)
    if parent is None:
        return False
    client.log_metric(parent, "privacy/epsilon_lower_bound", record["epsilon"])
    client.log_artifact(parent, str(run / "audit.json"), "record")
    return True


def log_model(run: Path, study: Study, parent: str) -> None:
    """Logs the run's model with its signature: ``mlflow.pyfunc.load_model`` scores raw inputs with it, preprocessing included."""
    import mlflow
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import ColSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    from fedml import scoring

    layout = scoring.read_layout(run)
    example = scoring.input_example(study, layout)
    output = scoring.output_example(study)
    if study.cohort.inputs == ("clinical",) and study.cohort.clinical is not None:
        spec = study.cohort.clinical
        # Any type: MLflow turns whole numbers away where it was told of floats, and a CSV's columns are sometimes the one, sometimes
        # the other. The model checks the values itself and says which column it cannot read.
        columns = [ColSpec(AnyType(), c, required=False) for c in spec.columns]
        signature = ModelSignature(Schema(columns), infer_signature(output).inputs)  # outputs: the schema of what came out
    else:
        signature = infer_signature(example, output)
    if study.cohort.image is not None and study.cohort.image.tiles is not None:  # persons differ in how many tiles they have
        shaped = [(s, (-1, -1, *s.shape[2:]) if len(s.shape) == 5 else s.shape) for s in signature.inputs]
        signature = ModelSignature(Schema([TensorSpec(s.type, shape, s.name) for s, shape in shaped]), signature.outputs)
    needed = {
        "torch",
        "numpy",
        "pandas",
        "mlflow",
        *(["monai"] if "image" in study.cohort.inputs and study.model.image.net != "cnn" else []),
    }
    requirements = [f"{name}=={number}" for name, number in versions().items() if name in needed]
    requirements += [f"{name}=={importlib.metadata.version(name)}" for name in ("pydantic", "safetensors")]
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "run"
        kept.mkdir()
        for name in (STUDY, MODEL, PANEL, LAYOUT):
            (kept / name).write_bytes((run / name).read_bytes())
        mlflow.set_tracking_uri(store())
        # MLflow would have type hints on predict and an input example; the signature is given instead.
        with warnings.catch_warnings(), mlflow.start_run(run_id=parent):
            warnings.simplefilter("ignore")
            mlflow.pyfunc.log_model(
                name="model",
                python_model=scoring.__file__,
                artifacts={"run": str(kept)},
                signature=signature,
                pip_requirements=requirements,
                code_paths=[str(Path(__file__).parent)],
            )


def deliver(run: Path, study: Study, *, wait: Callable[[], bool] = lambda: False) -> str:
    """Tracks a run from its folder and returns the parent's MLflow run id.

    Args:
        wait: asked when nothing is new and the run has not ended: true to look again a little later, false to close the record.
    """
    from fedml import scoring  # noqa: F401 - torch and mlflow take seconds, better while the run goes on than after its end

    tracker, at = Tracker(run, study), 0
    while True:
        events, at = read_events(run, at)
        tracker(events)
        if tracker.status != "RUNNING" or (not events and not wait()):
            return tracker.close()
        time.sleep(_TICK_SECONDS)
