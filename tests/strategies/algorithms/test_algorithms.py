"""Every algorithm is a whole ``Algorithm``: what reads the value finds each of its parts, for each name of the table."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedml.clients.work.client import app
from fedml.contract.extras import check_message
from fedml.errors import InputError, SiteError
from fedml.experiments.checklists.facts import facts_of
from fedml.experiments.runs.record import read_record
from fedml.experiments.runs.run import new_run, run_nodes
from fedml.flower.grid import InProcessGrid
from fedml.runs.events import End
from fedml.runs.log import emit
from fedml.strategies.algorithms import algorithm as module
from fedml.strategies.algorithms.algorithm import Algorithm, Received, returned, sent
from fedml.strategies.algorithms.averaging import Averaging
from fedml.strategies.algorithms.registry import FLOWER, STRATEGIES, algorithm_of, make_strategy
from fedml.strategies.describe import describe, leaves
from fedml.study.study import Study
from fedml.wire import records as wire
from fedml.wire.records import REQUEST_CONFIG, REQUEST_RECORDS, Phase, pack
from tests.conftest import clinical_site, make_study

FOREIGN = "flwr.serverapp.strategy:FedMedian"
NAMES = [*STRATEGIES, *FLOWER, FOREIGN]
MODEL = {"layer.weight": torch.ones(2, 3), "layer.bias": torch.zeros(2), "norm.running_mean": torch.zeros(2)}
SHAPES = {name: tuple(value.shape) for name, value in MODEL.items()}
RANGES = {f"x{k}": [-10, 300] for k in (1, 2, 3)}


def study_of(name: str, **changes: Any) -> Study:
    return make_study(**{"strategy": {"name": name}, "training": {"optimizer": "sgd", "lr": 0.1}, **changes})


@pytest.mark.parametrize("kind", [Algorithm, module.Server, module.Sends, module.Words, module.SiteWork, module.SiteEnd, module.Received])
def test_no_field_has_a_default_that_hides_a_gap(kind: Any) -> None:
    assert [field.name for field in fields(kind) if field.default is not MISSING or field.default_factory is not MISSING] == []


@pytest.mark.parametrize("name", NAMES)
def test_what_is_declared_is_apart_from_the_phases_own(name: str) -> None:
    algorithm = algorithm_of(study_of(name))
    taken = {value for key, value in vars(wire).items() if key.isupper() and isinstance(value, str)}
    assert not taken & {*algorithm.sends.records, *algorithm.returns, *algorithm.sends.config}
    assert not REQUEST_CONFIG.keys() & algorithm.sends.config.keys()
    if algorithm.server is not None:
        assert {key: type(value) for key, value in algorithm.server.config.items()} == dict(algorithm.sends.config)
    for phase in set(Phase) - {Phase.ROUND}:
        for extras in (sent(algorithm, phase, SHAPES), returned(algorithm, phase, SHAPES)):
            assert (extras.config, extras.records) == ({}, {})


@pytest.mark.parametrize("name", NAMES)
def test_a_round_between_both_halves_holds_exactly_what_is_declared(name: str) -> None:
    """The server's message passes the site's check, without one key it does not; the site's records fold into the next model."""
    study = study_of(name)
    algorithm, strategy = algorithm_of(study), make_strategy(study)
    grid = InProcessGrid(app, [{}, {}])
    config = ConfigRecord({"study": study.canonical, "phase": "round", "round": 1})
    (message, *_) = strategy.configure_train(1, pack(MODEL), config, grid)
    content = RecordDict({**message.content, "agreement": pack({})})
    extras = sent(algorithm, Phase.ROUND, SHAPES)
    check_message(Phase.ROUND, content, extras)
    assert set(content) == REQUEST_RECORDS[Phase.ROUND] | extras.records.keys()
    for key in extras.config:
        less = {k: v for k, v in content.config_records["config"].items() if k != key}
        with pytest.raises(SiteError):
            check_message(Phase.ROUND, RecordDict({**content, "config": ConfigRecord(less)}), extras)

    received = {key: wire.unpack_tensors(content.array_records[key]) for key in algorithm.sends.records}
    reported = {key: content.config_records["config"][key] for key in algorithm.sends.config}
    work = algorithm.site(Received(reported, received, {}, MODEL, study.training))
    network = {k: torch.nn.Parameter(v.clone()) for k, v in MODEL.items() if not k.endswith("running_mean")}
    for parameter in network.values():
        parameter.grad = torch.ones_like(parameter)
    for hook in work.hooks:
        hook(network)
    assert all(bool(torch.isfinite(p.grad).all()) for p in network.values() if p.grad is not None)
    end = work.finish({k: v + 0.5 for k, v in MODEL.items()}, 3)
    declared = {"returns": algorithm.returns, "keeps": algorithm.keeps}
    for which, records in declared.items():
        assert {k: {n: tuple(v.shape) for n, v in a.items()} for k, a in getattr(end, which).items()} == {
            k: dict(shapes(SHAPES)) for k, shapes in records.items()
        }
    if isinstance(strategy, Averaging):
        moved = {k: v + 0.5 for k, v in MODEL.items()}
        back = {"arrays": pack(moved), "metrics": MetricRecord({"num-examples": 4}), **{k: pack(v) for k, v in end.returns.items()}}
        following, _ = strategy.aggregate_train(1, [Message(RecordDict(back), reply_to=message)])
        assert following is not None
        assert following.keys() == MODEL.keys()


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_has_its_sentences(name: str, tmp_path: Path) -> None:
    study = study_of(name)
    words = algorithm_of(study).words
    plan = describe(study)
    assert f"Combined    by {name}" in plan
    for text in (words.gets, words.keeps):
        assert text in plan
    assert any(words.leaves in line for line in leaves(study))
    assert bool(words.leaves) == bool(algorithm_of(study).returns)
    assert bool(words.keeps) == bool(algorithm_of(study).keeps)
    assert bool(words.gets) == bool(algorithm_of(study).sends.records)
    assert words.report.endswith(".")
    if name in ("fedavg", "scaffold"):  # of a whole run: the sentence that report and checklists show
        sites = [clinical_site(tmp_path / site, site, 60, k) for k, site in enumerate("ab")]
        run = new_run(study, tmp_path / "runs", None, engine="local", job="train")
        run_nodes(study, [{"manifest": str(site)} for site in sites], run)
        emit(run, End(status="finished", reason=""))
        assert words.report in facts_of(read_record(run))["training"].text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("unit", ["patient", "site"])
def test_no_algorithm_that_returns_or_keeps_more_is_private(name: str, unit: str) -> None:
    privacy: dict[str, Any] = {"unit": unit, "noise_multiplier": 1.0, "ranges": RANGES}
    privacy |= {"persons": {"a": 50, "b": 50}} if unit == "patient" else {}
    study = study_of(name, privacy=privacy)
    more = algorithm_of(study_of(name))
    if more.returns or more.keeps:
        with pytest.raises(InputError, match="privacy"):
            algorithm_of(study)
    else:
        assert algorithm_of(study).refuses(study) == ""


def test_a_foreign_strategy_is_not_imported_at_a_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "foreign_code.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    algorithm = algorithm_of(study_of("foreign_code:Strategy"))
    assert not (tmp_path / "imported").exists()
    assert (algorithm.server, dict(algorithm.sends.config), dict(algorithm.returns), dict(algorithm.keeps)) == (None, {}, {}, {})


def test_a_name_that_is_not_known_is_refused_at_a_site_too() -> None:
    with pytest.raises(InputError, match='"fedfuture" is not known'):
        algorithm_of(study_of("fedfuture"))
    with pytest.raises(InputError, match='"fedfuture" is not known'):
        describe(study_of("fedfuture"))
