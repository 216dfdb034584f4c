"""Every dispatcher knows every modality, and refuses by name what a modality does not have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from fedml.clients.cli import check as site_check
from fedml.clients.desk.doctor import examine
from fedml.clients.desk.rehearsal import rehearse
from fedml.clients.site.manifest import Data, Site, read_site
from fedml.clients.site.read import read_cohort
from fedml.clients.work.client import execute
from fedml.clients.work.half import Memory
from fedml.clients.work.request import Request
from fedml.cohort.inputs import Table
from fedml.cohort.persons import Cohort
from fedml.contract.replies import check_form
from fedml.errors import InputError, NotBuilt, RunError, SiteError
from fedml.experiments.checklists.facts import _missing, _network, _preprocessing
from fedml.learning.statistics import cohort_sums
from fedml.modalities.layout import Layout
from fedml.modalities.modality import REFUSALS, Modality, Words
from fedml.modalities.registry import MODALITIES, check_inputs, inputs_of, modalities_of, pool
from fedml.models.fusion import build_model
from fedml.privacy.attack import Gradients, Noise, canary_persons
from fedml.privacy.releases import not_covered
from fedml.privacy.statistics import private_sums, stated_constants
from fedml.strategies.describe import describe, leaves
from fedml.study.cohort_section import Cohort as CohortSection
from fedml.study.cohort_section import Inputs
from fedml.study.study import Study
from fedml.synthetic.placeholder import make_placeholder
from fedml.synthetic.write_site import write_site
from fedml.tracking.scoring import to_batch
from fedml.tracking.signature import input_example, requirements_of, signature_of
from fedml.wire.records import DESCRIBED, Phase, pack, unpack
from tests.conftest import clinical_site, federate, image_site, make_study, to_toml, write_bed, write_csv, write_manifest

NAMES = tuple(MODALITIES)
PERSONS, KEYS = 60, 7
LAYOUTS = {"image": Layout((1, 8, 8)), "variants": Layout(variants=KEYS)}
FEATURES = {"original_firstorder_Mean": [-200, 200], "original_glcm_Contrast": [0, 100]}
SECTIONS: dict[str, dict[str, Any]] = {
    "omics": {"cohort__omics": {"columns": ["g1", "g2"], "range": [-4, 4]}},
    "radiomics": {"cohort__radiomics": {"modality": "CT", "spacing_mm": [], "features": list(FEATURES), "ranges": FEATURES}},
}
RANGES = {"clinical": {"ranges": {"x1": [-3, 9], "x2": [-9, 7], "x3": [0, 200]}}}
WHY = "it is not written"


@dataclass(frozen=True)
class Known:
    """A site that has one input, and studies of it: as any, and with privacy of a patient."""

    name: str
    site: Site
    folder: Path
    study: Study
    private: Study

    @property
    def cohort(self) -> Cohort:
        return read_cohort(self.site, self.study)

    @property
    def layout(self) -> Layout:
        return LAYOUTS.get(self.name, Layout())

    @property
    def saved(self) -> dict[str, Any]:
        return {"image_shape": list(self.layout.image_shape), "variants": self.layout.variants}


def variant_site(folder: Path, name: str, persons: int, seed: int) -> Path:
    rng, ids = np.random.default_rng(seed), [f"{name}{k:04d}" for k in range(persons)]
    folder.mkdir(parents=True)
    write_csv(folder / "persons.csv", ids, {"y": rng.integers(0, 2, persons)})
    keys = [("1", 100 + k, f"rs{k}", "A", "G") for k in range(KEYS)]
    write_bed(folder / "cohort.bed", ids, keys, rng.integers(-1, 3, (persons, KEYS)).astype(np.int8))
    return write_manifest(folder, name, variants='{ path = "cohort.bed", build = "GRCh38" }')


def omics_site(folder: Path, name: str, persons: int, seed: int) -> Path:
    rng, ids = np.random.default_rng(seed), [f"{name}{k:04d}" for k in range(persons)]
    folder.mkdir(parents=True)
    write_csv(folder / "persons.csv", ids, {"y": rng.integers(0, 2, persons)})
    write_csv(folder / "proteins.csv", ids, {"g1": rng.normal(size=persons), "g2": rng.normal(2, 3, persons)})
    return write_manifest(folder, name, omics='{ path = "proteins.csv" }')


def radiomics_site(folder: Path, name: str, persons: int, seed: int) -> Path:
    rng, ids = np.random.default_rng(seed), [f"{name}{k:04d}" for k in range(persons)]
    for part in ("ct", "masks"):
        (folder / part).mkdir(parents=True)
    write_csv(folder / "persons.csv", ids, {"y": rng.integers(0, 2, persons)})
    for person in ids:
        np.save(folder / "ct" / f"{person}.npy", rng.normal(0, 100, (6, 6, 6)).astype(np.float32))
        np.save(folder / "masks" / f"{person}.npy", np.pad(rng.integers(0, 2, (4, 4, 4)), 1).astype(np.uint8))
    return write_manifest(folder, name, radiomics='{ path = "ct", format = "npy", masks = "masks" }')


SITES: dict[str, Callable[[Path, str, int, int], Path]] = {
    "clinical": clinical_site, "image": image_site, "variants": variant_site, "omics": omics_site, "radiomics": radiomics_site,
}  # fmt: skip


@pytest.fixture(params=NAMES)
def known(request: pytest.FixtureRequest, tmp_path: Path) -> Known:
    name = request.param
    site = read_site(SITES[name](tmp_path / "a", "a", PERSONS, 1))
    changes = {**SECTIONS.get(name, {}), "model__image": {"channels": [4]}, "federation__rounds": 1}
    privacy = {"unit": "patient", "noise_multiplier": 1.0, "persons": {"a": 40}, **RANGES.get(name, {})}
    private = make_study((name,), ("a",), **changes, privacy={**privacy, "statistics": "private"})
    return Known(name, site, tmp_path, make_study((name,), ("a",), **changes), private)


# --- the table is closed


def test_the_table_names_what_a_study_and_a_manifest_may_list() -> None:
    assert set(MODALITIES) == set(Inputs.model_fields)
    assert all(name == modality.name for name, modality in MODALITIES.items())
    sections = {name: hint for name, hint in get_type_hints(Data).items() if name in MODALITIES}
    assert {name: get_args(hint)[0] for name, hint in sections.items()} == {name: m.data for name, m in MODALITIES.items()}
    assert set(MODALITIES) <= set(CohortSection.model_fields), "each has its section of the study"


def test_no_field_of_a_modality_or_of_its_words_has_a_default() -> None:
    for kind in (Modality, Words):
        for field in dataclasses.fields(kind):
            assert field.default is dataclasses.MISSING, field.name
            assert field.default_factory is dataclasses.MISSING, field.name


def test_what_may_be_not_built_is_what_has_a_refusal_and_a_dispatcher_here() -> None:
    optional = {field.name for field in dataclasses.fields(Modality) if "NotBuilt" in str(field.type)}
    assert optional == set(REFUSALS) == set(DISPATCHERS)


def test_the_sizes_that_data_leave_open_are_those_of_the_layout() -> None:
    fields = [field for modality in MODALITIES.values() for field in modality.layout]
    assert sorted(fields) == sorted(field.name for field in dataclasses.fields(Layout))


def test_a_cohort_with_an_input_that_the_table_lacks_is_refused(known: Known) -> None:
    strange = replace(known.cohort, inputs={"sounds": Table("sounds", np.zeros((PERSONS, 1)), np.ones(PERSONS, bool))})
    for ask in (
        lambda: list(inputs_of(strange)),
        lambda: make_placeholder(strange, known.study),
        lambda: cohort_sums(strange, "classification"),
    ):
        with pytest.raises(InputError, match='no modality is named "sounds"'):
            ask()


# --- every dispatcher, for every modality


def _canaries(known: Known) -> Cohort:
    random = np.random.default_rng(0)
    gradients = Gradients(known.private, known.layout, random)
    gradients.load(stated_constants(known.private, known.layout))
    noise = Noise(1.0, np.zeros((0, gradients.size)))
    return canary_persons(known.cohort, known.private, known.layout, 3, random, gradients, noise)


def _site_check(known: Known) -> None:
    (known.folder / "study.toml").write_text(to_toml(known.study.model_dump(mode="json", exclude_none=True)))
    site_check(known.folder / "study.toml", known.site.file)


# What asks for the field, as a user's command does. ``inspect`` is apart: a doctor reports, and refuses nothing.
DISPATCHERS: dict[str, Callable[[Known], Any]] = {
    "read": lambda known: known.cohort,
    "inspect": lambda known: examine(known.site),
    "summary": _site_check,
    "pool": lambda known: pool([known.cohort, known.cohort], known.study),
    "preprocess": lambda known: build_model(known.study, known.layout),
    "encoder": lambda known: build_model(known.study, known.layout),
    "sums": lambda known: cohort_sums(known.cohort, "classification"),
    "bounded": lambda known: private_sums(known.cohort, known.private, known.layout),
    "ranges": lambda known: stated_constants(known.private, known.layout),
    "canary": _canaries,
    "placeholder": lambda known: make_placeholder(known.cohort, known.study),
    "write": lambda known: write_site(known.folder / "copy", known.cohort, known.study),
    "raw": lambda known: to_batch(known.study, input_example(known.study, known.saved)),
    "example": lambda known: input_example(known.study, known.saved),
    "form": lambda known: signature_of(known.study, known.saved),
    "packages": lambda known: requirements_of(known.study),
}


def without(monkeypatch: pytest.MonkeyPatch, name: str, field: str) -> None:
    monkeypatch.setitem(MODALITIES, name, replace(MODALITIES[name], **{field: NotBuilt(WHY)}))  # type: ignore[arg-type]


@pytest.mark.parametrize("field", DISPATCHERS)
def test_a_dispatcher_serves_each_modality_and_refuses_the_one_that_lacks_the_field(
    known: Known, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert known.cohort.inputs.keys() == {known.name}
    DISPATCHERS[field](known)
    if (known.folder / "copy").exists():
        (known.folder / "copy").rename(known.folder / "first")
    without(monkeypatch, known.name, field)
    if field == "inspect":
        (found,) = (f for f in examine(known.site) if f.what == known.name)
        assert (found.state, WHY in found.text) == ("warn", True)
        return
    with pytest.raises(InputError) as refused:
        DISPATCHERS[field](known)
    what, instead = REFUSALS[field]
    assert str(refused.value) == f'input "{known.name}": {what} ({WHY}); {instead}.'


def test_a_private_study_ends_before_anything_is_read_where_there_are_no_ranges(
    known: Known, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check_inputs(known.private)
    without(monkeypatch, known.name, "ranges")
    text = f'input "{known.name}": a private study cannot use it'
    for ask in (lambda: check_inputs(known.private), lambda: read_cohort(known.site, known.private)):
        with pytest.raises(InputError, match=text):
            ask()
    with pytest.raises((InputError, RunError), match=text):
        federate(known.private, [known.site.file], tmp_path / "run")
    read_cohort(known.site, known.study)  # a study without privacy may use it


def test_a_private_study_trains_on_each_modality(known: Known, tmp_path: Path) -> None:
    run = federate(known.private, [known.site.file], tmp_path / "run")
    assert all(bool(torch.isfinite(values).all()) for values in run.arrays.values())
    assert f"preprocess.{known.name}.mean" in run.constants()


def test_a_rehearsal_plays_each_modality_and_ends_where_there_is_no_placeholder(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rehearse(known.site, known.study).persons == PERSONS
    without(monkeypatch, known.name, "placeholder")
    with pytest.raises(InputError, match=f'input "{known.name}": a study that uses it cannot be rehearsed'):
        rehearse(known.site, known.study)


def test_a_placeholder_holds_no_value_of_a_real_person(known: Known) -> None:
    real, made = known.cohort, make_placeholder(known.cohort, known.study)
    assert made.inputs.keys() == real.inputs.keys()
    assert set(made.ids).isdisjoint(real.ids)
    before, after = (c.batch(range(PERSONS))[known.name].float() for c in (real, made))
    assert before.shape == after.shape
    assert torch.equal(torch.isnan(before), torch.isnan(after)), "what is missing stays missing"
    there = before[~torch.isnan(before)] != after[~torch.isnan(before)]
    if known.name == "variants":  # of three values some coincide
        assert there.float().mean() > 0.2
        assert real.digest != made.digest
    else:
        assert there.float().mean() > 0.98


def test_a_written_site_reads_back_as_the_same_input(known: Known) -> None:
    copy = read_cohort(read_site(write_site(known.folder / "copy", known.cohort, known.study)), known.study)
    before, after = (c.batch(range(PERSONS)) for c in (known.cohort, copy))
    assert before.keys() == after.keys()
    for key, values in before.items():
        assert torch.equal(values.nan_to_num(-99), after[key].nan_to_num(-99)), key


@pytest.mark.parametrize("classes", [[0, 128, 255], ["outside", "rim", "core"]])
def test_masks_are_written_and_rehearsed_with_their_images(tmp_path: Path, classes: list[int | str]) -> None:
    rng, ids = np.random.default_rng(1), [f"a{k:04d}" for k in range(PERSONS)]
    site = read_site(image_site(tmp_path / "a", "a", PERSONS, 1, (16, 16)))
    drawn = rng.integers(0, 3, (PERSONS, 16, 16)).astype(np.uint8)
    values = np.array([0, 128, 255], np.uint8)[drawn] if isinstance(classes[0], int) else drawn
    np.savez(tmp_path / "a" / "images.npz", ids=np.array(ids), images=rng.integers(0, 255, (PERSONS, 16, 16)), masks=values)
    changes: dict[str, Any] = {"model__task": "segmentation", "model__segmentation": {"channels": [4, 8]}, "cohort__classes": classes}
    study = make_study(("image",), ("a",), **changes, cohort__image={"size": [16, 16]}, federation__rounds=1)
    cohort = read_cohort(site, study)
    again = read_cohort(read_site(write_site(tmp_path / "copy", cohort, study)), study)
    assert torch.equal(again.batch(range(PERSONS))["mask"], cohort.batch(range(PERSONS))["mask"])
    assert rehearse(site, study).persons == PERSONS


def test_canaries_have_the_input_and_stand_apart(known: Known) -> None:
    found = _canaries(known)
    assert len(found) == 3
    batch = found.batch(range(3))
    assert batch[f"{known.name}_present"].tolist() == [1, 1, 1]
    assert not torch.equal(batch[known.name][0], batch[known.name][1])


def test_the_digest_covers_each_modality(known: Known) -> None:
    cohort = known.cohort
    changed = make_placeholder(cohort, known.study).inputs
    assert replace(cohort, inputs=changed).digest != cohort.digest
    assert replace(cohort, inputs={}).digest != cohort.digest
    assert read_cohort(known.site, known.study).digest == cohort.digest


# --- what a site sends of it before training


def test_what_a_site_says_of_it_is_what_is_declared(known: Known) -> None:
    modality = MODALITIES[known.name]
    (value,) = known.cohort.inputs.values()
    assert modality.described(value).keys() == modality.declared().keys()
    request = Request(known.study, Phase.DESCRIBE, 0, {}, "a", (str(known.site.file),))

    def check(change: Callable[[dict[str, Any]], Any]) -> None:
        reply = execute(request, RecordDict(), Memory(RecordDict(), "1"))
        values = dict(unpack(reply.array_records[DESCRIBED]))
        change(values)
        reply[DESCRIBED] = pack(values)
        check_form(known.study, Phase.DESCRIBE, "a", reply, None)

    check(lambda values: None)
    for key in modality.declared():
        with pytest.raises(SiteError, match=f"{key} has another shape or type than declared"):
            check(lambda values, key=key: values.update({key: np.zeros((2, 2), np.float32)}))
        if len(modality.declared()) > 1:
            with pytest.raises(SiteError, match="an input is described in part"):
                check(lambda values, key=key: values.pop(key))
    for other in (other for other in MODALITIES.values() if other is not modality):
        for key in other.declared():
            with pytest.raises(SiteError, match="a key that is not declared"):
                check(lambda values, key=key: values.update({key: np.zeros(1, np.uint8)}))


# --- raw values of a saved model, and words


def test_a_saved_model_is_asked_by_name(known: Known) -> None:
    with pytest.raises(InputError, match=f'the model has no input "sounds"; its inputs are {known.name}'):
        to_batch(known.study, {"sounds": np.zeros((1, 1))})
    batch, model = to_batch(known.study, input_example(known.study, known.saved)), build_model(known.study, known.layout).eval()
    with torch.inference_mode():
        assert model(batch).shape == (1, 2)


def test_plan_privacy_and_checklists_have_words_for_each_modality(known: Known) -> None:
    (modality,) = modalities_of(known.study)
    words, plan = modality.words, " ".join(describe(known.study).split())
    assert f"Reads {words.plan(known.study)}" in plan
    assert f"count, sum and sum of squares of each {words.column} over" in plan
    for text in words.sends(known.study):
        assert text in plan
        assert f"before: its site name; {text}" in leaves(known.private)[0]
    assert set(words.uncovered(known.private)) <= set(not_covered(known.private))
    assert f"all sites: {words.columns}." in _preprocessing(known.study)[0]
    assert words.missing(known.study)[0] == _missing(known.study)[0]
    assert words.network(known.study) in _network(known.study)
    assert words.network(known.study).startswith(f"{known.name}: ")
