"""`fedml promote`: which run may become a study's challenger or champion, and what the registry then says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedml.errors import InputError
from fedml.experiments.models.promote import check_sites, check_sound, promote
from fedml.experiments.runs.record import read_record
from fedml.runs.log import EVENTS, read_events
from tests.command import quick as command
from tests.tracked import finished

Change = Callable[[list[dict[str, Any]]], object]
PRIVATE: dict[str, Any] = {
    "privacy__unit": "patient", "privacy__epsilon": 5.0, "privacy__delta": 1e-3, "privacy__persons": {"bergen": 40, "lund": 40},
    "privacy__ranges": {"x1": [0, 6], "x2": [-7, 5], "x3": [0, 200]}, "federation__rounds": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four runs: good; worse (hardly trained) on the same persons; other persons to test on (another seed); private."""
    folder = tmp_path_factory.mktemp("promote")
    return {
        "folder": folder,
        "good": finished(folder, federation__rounds=3)[0],
        "worse": finished(folder, federation__rounds=3, training__lr=1e-7)[0],
        "other": finished(folder, study__seed=4)[0],
        "private": finished(folder, **PRIVATE)[0],
    }


@pytest.fixture(autouse=True)
def in_folder(work: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The store of these runs, by its whole path: MLflow keeps a store that it once opened by a relative one."""
    monkeypatch.chdir(work["folder"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{work['folder'] / 'mlflow.db'}")


def changed(run: Path, to: Path, change: Change) -> Path:
    """A copy of a run whose log is another."""
    shutil.copytree(run, to)
    events = read_events(run)[0]
    change(events)
    (to / EVENTS).write_text("".join(json.dumps(e) + "\n" for e in events))
    return to


def of(events: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The last event of a kind."""
    return next(e for e in reversed(events) if e["event"] == kind)


def test_champion_and_challenger_are_in_the_registry_with_their_lineage(work: dict[str, Path]) -> None:
    import mlflow
    from mlflow import MlflowClient

    done = command("fedml", "promote", work["good"], "--as", "champion", cwd=work["folder"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "toy version 1 is the champion: models:/toy@champion"
    uri = f"sqlite:///{work['folder'] / 'mlflow.db'}"
    client, record = MlflowClient(uri), read_record(work["good"])
    version = client.get_model_version_by_alias("toy", "champion")
    assert version.tags["fedml.run_id"] == record.run_id
    assert version.tags["fedml.study_sha256"] == record.study.sha256
    assert version.tags["fedml.weights_sha256"] == record.final.weights_sha256
    assert client.get_run(version.run_id).data.tags["fedml.run_id"] == record.run_id
    mlflow.set_tracking_uri(uri)
    import pandas as pd

    scored = mlflow.pyfunc.load_model("models:/toy@champion").predict(pd.DataFrame({"x1": [3.0], "x2": [-1.0], "x3": [100.0]}))
    assert 0 < scored["probability_1"][0] < 1
    # Once more changes nothing; as a challenger of itself it makes no sense.
    assert promote(work["good"], "champion", 0.02).number == 1
    assert len(client.search_model_versions("name = 'toy'")) == 1
    with pytest.raises(InputError, match="is already the champion of toy"):
        promote(work["good"], "challenger", 0.02)


def test_a_run_at_which_a_site_loses_is_refused_with_site_and_figures(work: dict[str, Path]) -> None:
    from mlflow import MlflowClient

    promote(work["good"], "champion", 0.02)
    old, new = (read_record(work[name]).final.metrics["test"]["sites"] for name in ("good", "worse"))
    site = next(s for s in old if old[s]["auroc"] - new[s]["auroc"] > 0.02)  # the first in the roster
    done = command("fedml", "promote", work["worse"], cwd=work["folder"])
    assert done.returncode == 2
    for words in (site, f"{old[site]['auroc']:.3f}", f"{new[site]['auroc']:.3f}", "margin of 0.02"):
        assert words in done.stderr
    client = MlflowClient(f"sqlite:///{work['folder'] / 'mlflow.db'}")
    assert [v.tags["fedml.run_id"] for v in client.search_model_versions("name = 'toy'")] == [work["good"].name]
    made = promote(work["worse"], "challenger", 1.0)  # a margin that allows the loss
    assert int(client.get_model_version_by_alias("toy", "challenger").version) == made.number == 2
    promote(work["worse"], "champion", 1.0)
    assert int(client.get_model_version_by_alias("toy", "champion").version) == 2
    assert "challenger" not in client.get_registered_model("toy").aliases
    assert promote(work["good"], "champion", 0.02).number == 1  # and back again: nowhere a loss


def test_only_the_same_test_persons_are_compared(work: dict[str, Path], tmp_path: Path) -> None:
    good = read_record(work["good"])
    with pytest.raises(InputError, match=r"split_key \(or the seed\).*not tested alike"):
        check_sites(read_record(work["other"]), good, 0.02)
    data = changed(work["good"], tmp_path / "data", lambda e: of(e, "agreed")["disclosed"]["lund"].update(dataset="0" * 64))
    with pytest.raises(InputError, match="lund read or prepared other data than for the champion"):
        check_sites(read_record(data), good, 0.02)
    silent = changed(work["good"], tmp_path / "silent", lambda e: of(e, "agreed")["disclosed"]["lund"].update(dataset=None))
    with pytest.raises(InputError, match="lund read or prepared other data"):
        check_sites(read_record(silent), read_record(silent), 0.02)
    gone = changed(work["good"], tmp_path / "gone", lambda e: of(e, "final")["metrics"]["test"]["sites"].pop("lund"))
    with pytest.raises(InputError, match="lund tested the champion"):
        check_sites(read_record(gone), good, 0.02)
    check_sites(good, read_record(gone), 0.02)


def test_the_margin_is_what_a_site_may_lose_and_no_more(work: dict[str, Path], tmp_path: Path) -> None:
    good = read_record(work["good"])
    value = good.final.metrics["test"]["sites"]["lund"]["auroc"]

    def at_lund(auroc: float | None) -> Change:
        return lambda events: of(events, "final")["metrics"]["test"]["sites"]["lund"].update(auroc=auroc)

    less = changed(work["good"], tmp_path / "less", at_lund(value - 0.125))
    check_sites(read_record(less), good, 0.1251)
    with pytest.raises(InputError, match=r"lund would lose 0\.125 auroc"):
        check_sites(read_record(less), good, 0.1249)
    with pytest.raises(InputError, match="lund would lose"):
        check_sites(read_record(changed(work["good"], tmp_path / "none", at_lund(None))), good, 10)


def _lost(events: list[dict[str, Any]]) -> None:
    of(events, "round")["sites"].pop("bergen")


BROKEN: dict[str, tuple[str, Change, str]] = {
    "failed": ("good", lambda e: of(e, "end").update(status="failed", reason="a site left"), "is failed .a site left."),
    "no end": ("good", lambda e: e.remove(of(e, "end")), "is unfinished"),
    "quorum": ("good", _lost, r"round 3 had 1 site\(s\), below the quorum of 2"),
    "last quorum": ("good", lambda e: of(e, "final")["sites"].pop("lund"), r"the last evaluation had 1 site\(s\)"),
    "round gone": ("good", lambda e: e.remove(of(e, "round")), "has 2 rounds, the study has 3"),
    "weights": ("good", lambda e: of(e, "final").update(weights_sha256="0" * 64), "is not the model"),
    "no claims": ("private", lambda e: e.remove(of(e, "privacy")), "no claim for bergen's persons"),
    "one claim": ("private", lambda e: of(e, "privacy")["claims"].pop("lund"), "no claim for lund's persons"),
    "epsilon": ("private", lambda e: of(e, "privacy")["claims"]["lund"].update(epsilon=5.01), "epsilon 5.01 .* lund.* above the study's 5"),
    "unbounded": ("private", lambda e: of(e, "privacy")["claims"]["lund"].update(epsilon=None), "no claim for lund's persons"),
    "delta": ("private", lambda e: of(e, "privacy")["claims"]["lund"].update(delta=0.01), "delta 0.01"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_run_that_broke_its_studys_promise_is_refused(case: str, work: dict[str, Path], tmp_path: Path) -> None:
    of_run, change, words = BROKEN[case]
    check_sound(read_record(work[of_run]))
    with pytest.raises(InputError, match=words):
        check_sound(read_record(changed(work[of_run], tmp_path / "broken", change)))


def test_an_audit_that_proves_more_than_the_claim_is_refused(work: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(work["private"], tmp_path / "run")
    (run / "audit.json").write_text('{"audit": {"epsilon": 1.0}}')
    check_sound(read_record(run))
    (run / "audit.json").write_text('{"audit": {"epsilon": 5.5}}')
    with pytest.raises(InputError, match=r"proves epsilon at least 5\.500"):
        check_sound(read_record(run))


def test_wrong_words_are_reported_in_a_sentence(work: dict[str, Path]) -> None:
    done = command("fedml", "promote", "nowhere", cwd=work["folder"])
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    for alias, margin in (("best", 0.02), ("champion", -1.0), ("champion", float("nan"))):
        with pytest.raises(InputError, match=r"--as|--margin"):
            promote(work["good"], alias, margin)
