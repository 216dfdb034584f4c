"""A finished model at other sites: it is tested once on the persons whose data are on this machine, and the test is recorded as a run.

    model = read_model("fedml-runs/heart-20260131-101500-3fa2b1", folder)
    study = evaluation_study(model, asked)
    run = evaluate_model(model, study, sites, Path("fedml-runs"), None)

Who is tested: at a site that did not train the model, by name, every person (the test part, if the site has a split file); at a site that
did, its test part under the model's own split. Both are kept apart, as in a run (``[federation] evaluate_only``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedml.clients.gate.local import Plan, app, check_budgets
from fedml.clients.site.manifest import Site
from fedml.clients.site.read import load_cohort
from fedml.cohort.variants.harmonise import Panel, panel_of
from fedml.cohort.variants.keys import from_text
from fedml.cohort.variants.model import Dosages
from fedml.errors import InputError, RunError
from fedml.experiments.runs.run import new_run
from fedml.modalities.layout import make_layout
from fedml.models.fusion import build_model, digest, load
from fedml.runs.events import NO_FINAL, End, Final
from fedml.runs.log import (
    EVENTS,
    LAYOUT,
    MODEL,
    PANEL,
    STUDY,
    emit,
    last,
    load_model,
    read_log,
    save_counts,
    save_model,
    study_of,
    write_whole,
)
from fedml.strategies.agreement.agree import ask_who
from fedml.strategies.agreement.agreement import Agreement
from fedml.strategies.agreement.external import lacking, with_external
from fedml.strategies.agreement.meaning import meaning_of
from fedml.strategies.checkpoint import RunState
from fedml.strategies.epsilon import privacy_record
from fedml.strategies.rounds import agreed_event, check_reporter, evaluate
from fedml.study.study import Study, parse_study

if TYPE_CHECKING:
    from flwr.serverapp import Grid

LINEAGE = "evaluated.json"  # which model a run tested
_CONSTANTS = ("preprocess.", "target.")


@dataclass(frozen=True)
class Finished:
    """A finished model: the study that trained it, arrays (learned and constants), image shape and panel; ``source``: as it was named."""

    source: str
    study: Study
    arrays: dict[str, torch.Tensor]
    image_shape: tuple[int, ...]
    panel: bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of all arrays, as a run's record has it."""
        return digest(self.arrays)


def read_model(text: str, into: Path) -> Finished:
    """The model that ``text`` names: a run's folder, the path of its ``model.safetensors``, or ``models:/NAME@ALIAS`` in MLflow.

    Args:
        into: an empty folder for a download.

    Raises:
        InputError: there is no such model, a file is missing, or the arrays are not those of the study or of the run's record.
    """
    if text.startswith(("models:/", "runs:/")):
        from fedml.tracking.registry import fetch_model

        folder = fetch_model(text, into)
    else:
        folder = Path(text).parent if Path(text).is_file() else Path(text)
    for name in (STUDY, MODEL, LAYOUT, PANEL):
        if not (folder / name).is_file():
            raise InputError(
                f"{text}: has no {name} ({', '.join((STUDY, MODEL, LAYOUT, PANEL))} belong together); give the folder of a run that "
                "finished, or models:/NAME@ALIAS."
            )
    study = study_of(folder)
    try:
        found = Finished(text, study, *load_model(folder))
        network = build_model(study, make_layout(study, found.image_shape, found.panel))
        load({k: v for k, v in network.state_dict().items() if v.is_floating_point()}, found.arrays)
    except (KeyError, ValueError, OSError, RuntimeError) as error:
        raise InputError(f"{folder / MODEL}: does not fit {STUDY} next to it ({error}); give the unchanged folder of a run.") from error
    recorded = last(read_log(folder)[0], NO_FINAL) if (folder / EVENTS).exists() else NO_FINAL
    if recorded.came and recorded.weights_sha256 != found.sha256:
        raise InputError(f"{folder / MODEL}: is not the model whose SHA-256 is in {EVENTS}; give the unchanged folder of the run.")
    return found


def evaluation_study(model: Finished, asked: Study, file: str) -> Study:
    """The study of the test: sites, name, subgroups, limits and privacy of ``asked``; inputs, network and split of the model.

    Raises:
        InputError: ``asked`` has another network, input or target than the model; the message names ``file`` and the first such key.
    """
    plan, trained = asked.model_dump(mode="json"), model.study.model_dump(mode="json")
    for section, less in (("cohort", {"split", "split_key"}), ("model", set[str]())):
        wanted, given = (_flat(section, {k: v for k, v in p[section].items() if k not in less}) for p in (trained, plan))
        for key in sorted(wanted | given):
            if wanted.get(key) != given.get(key):
                name, value = key.rpartition(".")[2], json.dumps(given.get(key))
                raise InputError(
                    f"{file}: [{key.rpartition('.')[0]}] {name} is {value}, the model {model.source} was trained with "
                    f"{json.dumps(wanted.get(key))}; a study that tests it has the model's inputs, target and network."
                )
    before, sites = model.study.federation.training, asked.federation.sites
    new = [site for site in sites if site not in before]
    if asked.privacy.unit == "patient" and len(new) < len(sites):
        known = next(site for site in sites if site in before)
        raise InputError(
            f'{file}: {known} trained the model, which is not built for [privacy] unit = "patient"; take it out of the roster.'
        )
    plan["cohort"] = {**trained["cohort"], "split_key": model.study.split_key}
    plan["federation"] = {"sites": list(sites), "rounds": 0, "timeout": asked.federation.timeout, "evaluate_only": new}
    plan["training"] = {key: trained["training"][key] for key in ("threads", "precision")}
    plan["strategy"] = {}
    plan["privacy"] = {**plan["privacy"], "persons": {}} if asked.privacy.unit == "patient" else {}
    plan.pop("gwas", None)
    return parse_study(json.dumps(plan))


def evaluate_model(model: Finished, study: Study, sites: Mapping[str, Site], runs: Path, study_file: Path | None) -> Path:
    """Tests the model and returns the folder of the run that records it (``fedml.runs.log``), with ``evaluated.json``.

    Args:
        study: ``evaluation_study``.

    Raises:
        InputError: bad site data, or a privacy budget that does not suffice. RunError: a site did not answer, or no person was tested.
    """
    from fedml.flower.grid import InProcessGrid

    for site in sites.values():
        load_cohort((str(site.file),), study)  # bad data are found before anything is written
    check_budgets([Plan(study, name, site, only_evaluated=True) for name, site in sites.items()])
    run = new_run(study, runs, study_file, engine="local", job="evaluate")
    lineage = {"model": model.source, "study": model.study.study.name, "study_sha256": model.study.sha256, "weights_sha256": model.sha256}
    write_whole(run / LINEAGE, json.dumps(lineage, indent=1).encode())
    label: dict[str, bool | int | float | str] = {"run": str(run.resolve())}
    try:
        grid = InProcessGrid(app, [{"manifest": str(site.file.resolve())} for site in sites.values()], label)
        _test(model, study, sites, run, grid)
    except (RunError, InputError) as error:
        emit(run, End(status="failed", reason=str(error)))
        raise
    emit(run, End(status="finished", reason=""))
    return run


def _test(model: Finished, study: Study, sites: Mapping[str, Site], run: Path, grid: Grid) -> Final:
    agreed = _agreement(model, study, sites, run, grid)
    learned = {k: v for k, v in model.arrays.items() if not k.startswith(_CONSTANTS)}
    emit(run, agreed_event(agreed, disclosures=agreed.disclosures, parameters=sum(v.numel() for v in learned.values())))
    final, counts = evaluate(study, grid, agreed, RunState(0, learned, {}))
    if final.refused:
        why = ", ".join(f"{site} ({reason})" for site, reason in final.refused.items())
        raise RunError(f"not every site tested the model: {why}; the errors above name the reason.")
    if not final.metrics.keys() & {"test", "external"}:
        raise RunError("no site has enough test persons: each needs at least min_count ([policy] of the study and of the site).")
    save_counts(run, counts)
    save_model(run, learned, agreed.constants, agreed.image_shape, agreed.panel)
    emit(run, privacy_record(study, dict.fromkeys(agreed.nodes.values(), 0)))
    final = replace(final, meaning_sha256=meaning_of(study, agreed, "", None, final))
    emit(run, final)
    return final


def _agreement(model: Finished, study: Study, sites: Mapping[str, Site], run: Path, grid: Grid) -> Agreement:
    """Who takes part, with what the model's sites agreed on when it was trained."""
    agreed, every = ask_who(study, grid)
    constants = {k: v for k, v in model.arrays.items() if k.startswith(_CONSTANTS)}
    agreed = replace(agreed, image_shape=model.image_shape, constants=constants)
    checks = [check for site in agreed.external.values() for check in lacking(study, site, every[site], model.image_shape)]
    if "variants" in study.cohort.inputs:
        keys, own = from_text(model.panel), dict[str, Any]()
        for name in agreed.nodes.values():
            if (dosages := load_cohort((str(sites[name].file.resolve()),), study).input("variants", Dosages)) is not None:
                own[name] = dosages.keys
        shared: Panel = panel_of(keys, own, study.cohort.variants.match)
        agreed, more = with_external(study, replace(agreed, shared=shared, build=str(study.cohort.variants.build)), every)
        checks += more
    if checks:
        check_reporter(run)(checks)
    return agreed


def _flat(section: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in _flat(f"{section}.{key}", inner).items()}
    return {section: value}
