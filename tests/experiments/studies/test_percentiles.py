"""A window of intensities that no site states: percentiles of all sites' voxels, from histograms that add."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedml.clients.desk.rehearsal import rehearse
from fedml.clients.gate.checks import check_request
from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import read_cohort
from fedml.clients.work.client import execute
from fedml.clients.work.half import Memory
from fedml.clients.work.request import read_request
from fedml.cohort.images.histograms import BINS, LINEAR, percentile, voxel_histogram, window_from
from fedml.contract.replies import check_form
from fedml.errors import InputError, Reason, RunError, SiteError
from fedml.study.study import Study
from fedml.wire.records import AGREEMENT, CONFIG, FLIPS, HISTOGRAM, IMAGE_SHAPE, PANEL, PERSONS, VOXELS, WINDOW, Phase, pack
from tests.conftest import federate, image_site, make_study, pooled
from tests.experiments.studies.test_cached_cohort import NETWORK, SIZE, reads, volume_site
from tests.inputs import images_of

__all__ = ["reads"]
SHAPE = {"size": list(SIZE), "orientation": "RAS", "percentiles": [2, 95]}
numbers = hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e5, 1e5, width=32))


def counted_study(**changes: Any) -> Study:
    plan = {"cohort__image": SHAPE, "cohort__classes": [0, 1], "model__task": "segmentation", "model__segmentation": NETWORK}
    return make_study(("image",), **{**plan, "federation__rounds": 1, **changes})


@example(np.linspace(-500, 500, 2001), 70.0)
@given(numbers, st.floats(0, 100))
def test_a_percentile_is_that_of_the_voxels_within_a_bin(values: np.ndarray[Any, Any], percent: float) -> None:
    exact = float(np.percentile(values.astype(np.float64), percent, method="inverted_cdf"))
    assert abs(percentile(voxel_histogram(values), percent) - exact) <= 0.0091 * (abs(exact) + LINEAR)


@given(numbers, numbers)
def test_histograms_add(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> None:
    both = voxel_histogram(np.concatenate([one, other]))
    np.testing.assert_array_equal(voxel_histogram(one) + voxel_histogram(other), both)
    assert (int(both.sum()), both.shape, str(both.dtype)) == (len(one) + len(other), (BINS,), "int64")
    np.testing.assert_array_equal(voxel_histogram(-one), voxel_histogram(-one.reshape(1, -1)))


def test_what_is_beyond_the_grid_is_counted_at_its_ends() -> None:
    assert voxel_histogram(np.array([-1e30, -1e6, 1e6, 1e30]))[[0, -1]].tolist() == [2, 2]
    with pytest.raises(ValueError, match="no site has a voxel"):
        window_from(np.zeros(BINS, np.int64), (1, 99))
    low, high = window_from(voxel_histogram(np.linspace(0, 1, 1001)), (0, 100))
    assert (low, high) == (float(np.float32(low)), float(np.float32(high)))


def training_voxels(manifest: Path, study: Study) -> np.ndarray[Any, Any]:
    """All voxels of the training persons' files, raw."""
    cohort = read_cohort(read_site(manifest), study)
    people = [cohort.ids[row] for row in cohort.rows("train")]
    files = [path for person in people for path in sorted((manifest.parent / "images" / person).glob("*.nii.gz"))]
    return np.concatenate([np.asarray(nibabel.load(path).dataobj).ravel() for path in files])


def test_two_sites_window_is_exactly_the_pooled_one_and_saved_with_the_model(tmp_path: Path, reads: list[Path]) -> None:
    manifests, study = [volume_site(tmp_path / n, n, k, k) for n, k in (("a", 14), ("b", 9))], counted_study()
    apart, together = federate(study, manifests, tmp_path / "r1"), pooled(study, manifests, tmp_path / "r2")
    window = apart.arrays[WINDOW]
    assert torch.equal(window, together.arrays[WINDOW])
    voxels = np.concatenate([training_voxels(m, study) for m in manifests]).astype(np.float64)
    for found, percent in zip(window.tolist(), (2, 95), strict=True):
        exact = float(np.percentile(voxels, percent, method="inverted_cdf"))
        assert abs(found - exact) <= 0.0091 * (abs(exact) + LINEAR)
    stated = {k: v for k, v in SHAPE.items() if k != "percentiles"} | {"window": window.tolist()}
    other = federate(counted_study(cohort__image=stated), manifests, tmp_path / "r3")
    assert other.final["metrics"] == apart.final["metrics"]
    assert all(torch.equal(values, other.arrays[name]) for name, values in apart.arrays.items() if name != WINDOW)
    for name in "ab":  # of a test person nothing is counted
        cohort = read_cohort(read_site(tmp_path / name), study)
        for path in (tmp_path / name / "images" / cohort.ids[cohort.rows("test")[0]]).glob("*.nii.gz"):
            volume = nibabel.load(path)
            nibabel.save(nibabel.Nifti1Image(np.asarray(volume.dataobj) + 5000, volume.affine), path)
    reads.clear()
    again = federate(counted_study(training__lr=0.5), manifests, tmp_path / "r4")
    assert torch.equal(again.arrays[WINDOW], window)
    assert 0 < len(set(reads)) <= 4  # the changed ones alone; twice each, to count and to prepare


def test_a_window_that_is_not_agreed_on_is_no_image(tmp_path: Path) -> None:
    site, study = read_site(volume_site(tmp_path, "a", 9)), counted_study()
    cohort = read_cohort(site, study)
    assert (images_of(cohort).shape, len(images_of(cohort).pixels)) == ((1, *SIZE), 12)
    with pytest.raises(ValueError, match="not agreed yet"):
        cohort.batch([0])
    ready = read_cohort(site, study, (0.0, 100.0))
    assert (ready.ids, ready.parts.tolist()) == (cohort.ids, cohort.parts.tolist())
    assert 0 <= float(ready.batch([0])["image"].min()) < float(ready.batch([0])["image"].max()) <= 1


def test_voxels_of_too_few_persons_do_not_leave(tmp_path: Path) -> None:
    manifests = [volume_site(tmp_path / n, n, 12, s) for s, n in enumerate("ab")]
    study = counted_study(policy__min_count=5, federation__quorum=1)
    (tmp_path / "b" / "persons.csv").write_text("id,y\n" + "".join(f"b{k:03d},0\n" for k in range(4)))
    run = federate(study, manifests, tmp_path / "run")
    assert next(e for e in run.events if e["event"] == "agreed")["sites"] == ["a"]
    assert run.rounds[0]["refused"] == {"b": "too-few-persons"}


def test_voxels_that_are_all_alike_end_the_run_with_a_sentence(tmp_path: Path) -> None:
    manifests = [volume_site(tmp_path / n, n, 9, s) for s, n in enumerate("ab")]
    for path in tmp_path.glob("*/images/*/*.nii.gz"):
        volume = nibabel.load(path)
        beyond = np.full(volume.shape, 1e9, np.float32)  # alike in the histogram, whose last bin begins at 10^6
        beyond.flat[0] = 2e9
        nibabel.save(nibabel.Nifti1Image(beyond, volume.affine), path)
    with pytest.raises(RunError, match=r"\[cohort.image\] percentiles give no window.*set window = "):
        federate(counted_study(cohort__image={**SHAPE, "percentiles": [50, 50.0000001]}), manifests, tmp_path / "run")


def test_the_gate_lets_a_histogram_and_a_window_pass_and_nothing_else_of_the_kind(tmp_path: Path) -> None:
    """A rehearsal plays the exchange through the site's own gate; a window for a study without percentiles does not come in."""
    site = read_site(image_site(tmp_path, "a", 60, 1))
    study = make_study(("image",), sites=("a",), cohort__image={"size": [8, 8], "percentiles": [1, 99]})
    reported = [(e.phase, e.direction, e.verdict) for e in rehearse(site, study).entries]
    assert ("voxels", "out", "accepted") in reported
    assert {verdict for _, direction, verdict in reported if direction != "site"} == {"accepted"}
    plain = make_study(("image",), sites=("a",), cohort__image={"size": [8, 8], "window": [0, 1]})
    agreement = {PANEL: np.zeros(0, np.uint8), FLIPS: np.zeros(0, np.uint8), IMAGE_SHAPE: np.array([1, 8, 8])}
    for plan, phase, window in ((plain, Phase.STATISTICS, [0, 1]), (study, Phase.STATISTICS, [0, np.inf])):
        config = ConfigRecord({"study": plan.canonical, "phase": str(phase), "round": 0})
        record = pack({**agreement, WINDOW: np.array(window, np.float32)})
        asked = read_request(content := RecordDict({CONFIG: config, AGREEMENT: record}), (str(site.file),), "a")
        with pytest.raises(SiteError, match="not declared"):
            check_request(asked, content)
    for window in ([1, 0], [1], []):
        content = RecordDict({CONFIG: config, AGREEMENT: pack({**agreement, WINDOW: np.array(window, np.float32)})})
        with pytest.raises(SiteError, match="no intensity window"):
            execute(read_request(content, (str(site.file),), "a"), content, Memory(RecordDict(), "1"))


@pytest.mark.parametrize(
    "values",
    [
        {HISTOGRAM: np.zeros(BINS, np.int64)},
        {HISTOGRAM: np.zeros(BINS - 1, np.int64), PERSONS: np.ones(1, np.int64)},
        {HISTOGRAM: np.zeros(BINS, np.float64), PERSONS: np.ones(1, np.int64)},
        {HISTOGRAM: np.full(BINS, -1), PERSONS: np.ones(1, np.int64)},
        {HISTOGRAM: np.zeros(BINS, np.int64), PERSONS: np.ones(1, np.int64), "names": np.zeros(3)},
    ],
)
def test_nothing_but_a_histogram_passes(values: dict[str, Any]) -> None:
    with pytest.raises(SiteError) as caught:
        check_form(counted_study(), Phase.VOXELS, "a", RecordDict({VOXELS: pack(values)}), None)
    assert caught.value.reason in (Reason.UNDECLARED, Reason.NON_FINITE)
    good = RecordDict({VOXELS: pack({HISTOGRAM: np.zeros(BINS, np.int64), PERSONS: np.ones(1, np.int64)})})
    check_form(counted_study(), Phase.VOXELS, "a", good, None)
    with pytest.raises(SiteError, match="no percentiles"):
        check_form(make_study(("image",), cohort__image={"size": [8, 8]}), Phase.VOXELS, "a", good, None)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"cohort__image": {**SHAPE, "window": [0, 1]}}, "exclude each other"),
        ({"cohort__image": {**SHAPE, "percentiles": [1]}}, "two numbers"),
        ({"cohort__image": {**SHAPE, "percentiles": [99, 1]}}, "percentiles"),
        (
            {"privacy": {"unit": "site", "noise_multiplier": 1}, "strategy": {"weighting": "equal"}},
            r"percentiles.*\"site\".*state a window"),
    ],
)  # fmt: skip
def test_percentiles_that_cannot_be_are_one_sentence(plan: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        counted_study(**plan)
    assert "\n" not in str(caught.value)
