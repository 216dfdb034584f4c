"""Whole slides as a study: what marks a person is in a few tiles of their slides; attention finds it, and memory stays bounded."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedml.clients.desk.rehearsal import rehearse
from fedml.clients.site.manifest import read_site
from fedml.clients.site.quarantine import read as read_quarantine
from fedml.clients.site.read import load_cohort, read_cohort
from fedml.cohort.images.reasons import TooManyExcluded
from fedml.cohort.persons import select
from fedml.cohort.slides.cohort import Bag, Slides, SlideTissue, read_slides
from fedml.errors import InputError
from fedml.learning.statistics import cohort_sums
from fedml.modalities.layout import Layout
from fedml.modalities.registry import pool
from fedml.models.fusion import build_model, load
from fedml.study.study import parse_study
from fedml.study.tiles import Tiles
from fedml.tracking.scoring import restore
from tests.command import quick as command
from tests.command import quick_json as run_json
from tests.conftest import federate, huge_slide, make_plan, make_study, pooled, public_data, to_toml, write_csv, write_manifest
from tests.inputs import slides_of as found_slides

GLASS, PINK, DARK = (243, 243, 243), (220, 130, 190), (90, 30, 110)
SIDE = 32  # pixels of a tile
SPEC: dict[str, Any] = {"size_px": SIDE, "per_step": 12}


def write_tiff(path: Path, pixels: np.ndarray[Any, Any], mpp: float | None = 0.5) -> Path:
    """A tiled TIFF of uint8 (rows, columns, 3)."""
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    scale: dict[str, Any] = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", compression="zlib", metadata=None, **scale)
    return path


def tissue(rng: np.random.Generator, ill: bool, columns: int = 6, rows: int = 5) -> np.ndarray[Any, Any]:
    """Glass around ``columns`` x ``rows`` tiles of tissue; in two tiles of those who are ill there is a dark spot, and in two of the others
    as many dark pixels as single ones."""
    out = np.full(((rows + 1) * SIDE, (columns + 1) * SIDE, 3), GLASS)
    out[: rows * SIDE, : columns * SIDE] = PINK
    for k in rng.choice(columns * rows, 2, replace=False):
        y, x = k // columns * SIDE, k % columns * SIDE
        if ill:
            a, b = rng.integers(4, SIDE - 14, 2)
            out[y + a : y + a + 10, x + b : x + b + 10] = DARK
        else:
            places = rng.choice(SIDE * SIDE, 100, replace=False)
            out[y + places // SIDE, x + places % SIDE] = DARK
    return (out + rng.integers(-6, 7, out.shape)).clip(0, 255).astype(np.uint8)


def slide_site(folder: Path, name: str, persons: int, seed: int, **size: int) -> Path:
    """Persons with a slide each; the first has two in a folder."""
    rng = np.random.default_rng(seed)
    ids = [f"{name}{k:03d}" for k in range(persons)]
    y = np.arange(persons) % 2
    for k, person in enumerate(ids):
        for path in (f"{person}/1.tif", f"{person}/2.tif") if not k else (f"{person}.tif",):
            write_tiff(folder / "slides" / path, tissue(rng, bool(y[k]), **size))
    write_csv(folder / "persons.csv", ids, {"y": y})
    return write_manifest(folder, name, image='{ path = "slides", format = "slide" }')


def slide_changes(**changes: Any) -> dict[str, Any]:
    """A study of slides by two sites, as ``make_study`` takes it."""
    start: dict[str, Any] = {
        "cohort__image": {"tiles": SPEC}, "model__image": {"channels": [8, 16], "pooling": "attention"},
        "training__lr": 0.01, "training__batch_size": 8, "cohort__split": {"train": 0.6, "val": 0.0, "test": 0.4},
    }  # fmt: skip
    return {**start, **changes}


def slide_plan(**changes: Any) -> dict[str, Any]:
    return make_plan(("image",), **slide_changes(**changes))


@pytest.mark.long
def test_attention_finds_what_marks_a_person(tmp_path: Path) -> None:
    """Trained with labels of persons only, the model classifies new persons, and the tile with most attention is a marked one."""
    sites = [slide_site(tmp_path / n, n, k, s) for n, k, s in (("a", 40, 1), ("b", 30, 2))]
    study = make_study(("image",), **slide_changes(training__local_epochs=4, federation__rounds=5, training__evaluate_every=0))
    run = federate(study, sites, tmp_path / "run")
    found = run.final["metrics"]["test"]["all"]
    assert found["auroc"] > 0.95
    assert found["accuracy"] > 0.9
    model = build_model(study, Layout(run.shape)).eval()
    load({k: v for k, v in model.state_dict().items() if v.is_floating_point()}, run.arrays)
    assert model.pooling is not None
    right = []
    for site in sites:
        cohort = read_cohort(read_site(site), study)
        slides = found_slides(cohort)
        for row in cohort.rows("test")[cohort.labels[cohort.rows("test")] == 1]:
            tiles = torch.cat(list(slides.bag(np.array([row]))))
            with torch.no_grad():
                each = model.encoder["image"](model.preprocess["image"](tiles))
                weight = model.pooling.attention(each, torch.zeros(len(tiles), dtype=torch.long), 1)
            darkest = tiles.float().mean((1, 2, 3)).argsort()[:2]
            right.append(int(weight.argmax()) in darkest.tolist())
    assert len(right) > 8
    assert np.mean(right) > 0.9


def test_the_same_twice_and_two_sites_give_what_one_gives(tmp_path: Path) -> None:
    """With one step a round over all tiles, FedAvg is gradient descent on the pooled persons."""
    sites = [slide_site(tmp_path / n, n, k, s) for n, k, s in (("a", 8, 1), ("b", 6, 2))]
    drawn = make_study(("image",), **slide_changes())
    first, second = federate(drawn, sites, tmp_path / "r1"), federate(drawn, sites, tmp_path / "r2")
    assert first.sha256 == second.sha256
    full = make_study(
        ("image",), **slide_changes(
            cohort__image={"tiles": {**SPEC, "per_step": 100}}, training__optimizer="sgd", training__lr=0.1, training__batch_size=0,
        ),
    )  # fmt: skip
    apart, together = federate(full, sites, tmp_path / "r3"), pooled(full, sites, tmp_path / "r4")
    assert apart.sha256 != first.sha256
    for name, values in apart.constants().items():
        torch.testing.assert_close(values, together.constants()[name], rtol=0, atol=0)
    for name, values in apart.learned().items():
        torch.testing.assert_close(values, together.learned()[name], rtol=1e-4, atol=1e-5)


def test_a_run_as_a_process_with_a_real_slide_a_broken_one_and_one_of_glass(tmp_path: Path) -> None:
    """A person with a damaged slide is excluded and listed; the run, its MLflow record and its saved model are complete."""
    import mlflow

    for name, persons, seed in (("a", 24, 1), ("b", 22, 2)):
        slide_site(tmp_path / "sites" / name, name, persons, seed)
    slides = tmp_path / "sites" / "b" / "slides"
    (slides / "b003.tif").unlink()
    shutil.copy(public_data("wsi") / "CMU-1-Small-Region.svs", slides / "b003.svs")
    (slides / "b005.tif").write_bytes((slides / "b005.tif").read_bytes()[:-2000])
    write_tiff(slides / "b007.tif", np.full((192, 192, 3), GLASS, np.uint8))
    with (tmp_path / "sites" / "b" / "site.toml").open("a") as file:
        file.write("[policy]\nmax_quarantined = 0.2\n")
    plan = slide_plan(cohort__image={"tiles": {**SPEC, "mpp": 0.5}}, federation__rounds=1)
    (tmp_path / "study.toml").write_text(to_toml(plan))
    reported = command("fedml", "check", "study.toml", cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    assert "slides, in tiles of 32 x 32 pixels at 0.5 micrometres a pixel with at least 50% tissue" in reported.stdout
    done = command("fedml", "run", "study.toml", "--sites", "sites", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    last = json.loads(done.stdout.strip().splitlines()[-1])
    said = " ".join(done.stderr.split())
    assert "1 with an excluded image (truncated)" in said
    assert "1 with an excluded image (no-tissue)" in said
    excluded = {entry["person"]: entry["reason"] for entry in read_quarantine(tmp_path / "sites" / "b" / ".fedml")}
    assert excluded == {"b005": "truncated", "b007": "no-tissue"}
    seen = command("fedml-site", "check", "study.toml", "--site", "sites/b", cwd=tmp_path)
    assert "would use 20 persons" in seen.stdout
    assert "slides: 21 with " in seen.stdout
    # The saved model says of a person's tiles what the run's model says of the person.
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    scorer = mlflow.pyfunc.load_model(f"runs:/{last['mlflow_run_id']}/model")
    study, model = restore(tmp_path / last["folder"])
    cohort = read_cohort(read_site(tmp_path / "sites" / "b"), study)
    found = found_slides(cohort)
    real = cohort.ids.index("b003")
    bags = [torch.cat(list(found.bag(np.array([row])))).float() for row in (real, 0)]
    assert len(bags[0]) > 1000
    raw = np.full((2, max(map(len, bags)), 3, SIDE, SIDE), np.nan, np.float32)
    for one, bag in zip(raw, bags, strict=True):
        one[: len(bag)] = bag.numpy()
    with torch.inference_mode():
        expected = torch.softmax(model(cohort.batch([real, 0])).double(), 1).numpy()
    assert scorer.predict(raw)[["probability_0", "probability_1"]].to_numpy() == pytest.approx(expected, abs=1e-5)


# --- what a cohort holds and reads


def slides_of(folder: Path, spec: dict[str, Any], persons: Sequence[str], **options: Any) -> Slides:
    return read_slides(folder / "slides", persons, Tiles(**spec), cache=folder / "cache", **options)


def test_tiles_of_a_bag_are_those_with_tissue_and_sums_are_of_all_of_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = {"p": [tissue(rng, True, 3, 2), tissue(rng, False, 2, 2)], "q": [tissue(rng, False, 4, 3)]}
    for person, parts in pixels.items():
        for k, part in enumerate(parts):
            write_tiff(tmp_path / "slides" / person / f"{k}.tif", part)
    slides = slides_of(tmp_path, SPEC, ["absent", "p", "q"])
    assert slides.person.tolist() == [1, 1, 2]
    wanted = {
        person: [part[y : y + SIDE, x : x + SIDE] for part in parts
                 for y in range(0, part.shape[0] - SIDE, SIDE) for x in range(0, part.shape[1] - SIDE, SIDE)]
        for person, parts in pixels.items()
    }  # fmt: skip
    bag = slides.bag(np.array([2, 0, 1]))
    assert bag.person.tolist() == [0] * 12 + [2] * 10
    expected = np.moveaxis(np.stack([*wanted["q"], *wanted["p"]]), 3, 1)
    np.testing.assert_array_equal(torch.cat(list(bag)).numpy(), expected)
    flat = np.moveaxis(expected[12:].astype(np.float64), 1, 0).reshape(3, -1)
    np.testing.assert_array_equal(slides.sums(np.array([1])), [[flat.shape[1]] * 3, flat.sum(1), (flat**2).sum(1)])
    np.testing.assert_array_equal(slides.sums(np.array([0])), np.zeros((3, 3)))


def test_a_cohort_keeps_slides_with_their_persons(tmp_path: Path) -> None:
    """Also where persons are left out, and where sites are pooled."""
    study = make_study(("image",), **slide_changes())
    cohorts = [read_cohort(read_site(slide_site(tmp_path / n, n, 5, s)), study) for n, s in (("a", 1), ("b", 2))]
    both = pool(cohorts, study)
    own = {(c.site, i): torch.cat(list(c[k]["image"])) for c in cohorts for k, i in enumerate(c.ids)}
    assert both.input("image", Slides) is not None
    for k, name in enumerate(both.ids):
        site, person = name.split("/")
        assert torch.equal(torch.cat(list(both[k]["image"])), own[site, person])
    few = select(both, np.array([0, 3, 7]))
    assert [torch.cat(list(few[k]["image"])).shape[0] for k in range(3)] == [60, 30, 30]
    assert torch.equal(torch.cat(list(few[2]["image"])), own["b", both.ids[7].split("/")[1]])
    total = sum(cohort_sums(c, "classification")["preprocess.image"] for c in cohorts)
    np.testing.assert_array_equal(cohort_sums(both, "classification")["preprocess.image"], total)


COUNTS = st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=5)


@given(COUNTS, st.integers(1, 6), st.integers(0, 999))
def test_what_is_drawn_keeps_to_the_budget(counts: list[list[int]], budget: int, seed: int) -> None:
    """As many tiles of each person as there are or the budget has, none twice, the same from the same seed; all where nothing is drawn."""
    slides = Slides(
        Tiles(per_step=budget),
        tuple(
            SlideTissue(Path(f"{p}-{k}"), np.stack([np.arange(n), np.full(n, k)], 1), np.zeros((3, 3)), (0, 0))
            for p, own in enumerate(counts) for k, n in enumerate(own)
        ),
        np.repeat(np.arange(len(counts)), [len(own) for own in counts]),
    )  # fmt: skip
    rows = np.random.default_rng(seed).permutation(len(counts))

    def tiles(bag: Bag) -> list[tuple[str, int]]:
        assert len(bag) == sum(len(one.corners) for one in bag.pieces)
        return [(str(one.path), int(x)) for one in bag.pieces for x, _ in one.corners]

    drawn = slides.bag(rows, torch.Generator().manual_seed(seed))
    assert len(set(tiles(drawn))) == len(drawn)
    assert np.bincount(drawn.person, minlength=len(rows)).tolist() == [min(budget, sum(counts[r])) for r in rows]
    assert [int(name.split("-")[0]) for name, _ in tiles(drawn)] == rows[drawn.person].tolist()
    assert tiles(drawn) == tiles(slides.bag(rows, torch.Generator().manual_seed(seed)))
    every = [(f"{r}-{k}", x) for r in rows for k, n in enumerate(counts[r]) for x in range(n)]
    assert tiles(slides.bag(rows)) == every
    assert set(tiles(drawn)) <= set(every)


def test_every_tile_is_drawn_equally_often() -> None:
    corners = [np.stack([np.arange(n), np.zeros(n, np.int64)], 1) for n in (3, 2)]
    slides = Slides(
        Tiles(per_step=2), tuple(SlideTissue(Path(str(k)), c, np.zeros((3, 3)), (0, 0)) for k, c in enumerate(corners)), np.zeros(2, int)
    )
    often, generator = np.zeros(5), torch.Generator().manual_seed(0)
    for _ in range(4000):
        for one in slides.bag(np.array([0]), generator).pieces:
            often[3 * int(str(one.path)) + one.corners[:, 0]] += 1
    assert often / 4000 == pytest.approx([0.4] * 5, abs=0.04)  # five standard deviations


def test_chunks_change_neither_answer_nor_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bag read in chunks against the same tiles as one tensor."""
    study = make_study(("image",), **slide_changes())
    cohort = read_cohort(read_site(slide_site(tmp_path / "a", "a", 5, 1)), study)
    model = build_model(study, Layout((3, SIDE, SIDE))).train()
    monkeypatch.setattr("fedml.cohort.slides.cohort.CHUNK_PIXELS", 7 * SIDE**2)
    batch = cohort.batch(range(5))
    assert [len(part) for part in batch["image"]] == [7] * 25 + [5]  # the first person has two slides
    out = {}
    for name, either in (("bag", batch), ("tensor", {**batch, "image": torch.cat(list(batch["image"]))})):
        model.zero_grad()
        logits = model(either)
        logits.square().sum().backward()
        out[name] = [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    assert len(out["bag"]) == 1 + sum(1 for _ in model.parameters())
    for ours, theirs in zip(out["bag"], out["tensor"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_was_looked_at_is_kept_and_a_damaged_or_other_entry_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiff(tmp_path / "slides" / "p.tif", tissue(np.random.default_rng(0), True))
    before = slides_of(tmp_path, SPEC, ["p"])
    (entry,) = (tmp_path / "cache").glob("*.npz")
    for damaged in (b"", entry.read_bytes()[:100], b"no archive"):
        entry.write_bytes(damaged)
        np.testing.assert_array_equal(slides_of(tmp_path, SPEC, ["p"]).slides[0].corners, before.slides[0].corners)
    assert slides_of(tmp_path, {**SPEC, "min_tissue": 1.0}, ["p"]).tiles == 30
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 2
    (tmp_path / "slides" / "p.tif").rename(tmp_path / "slides" / "q.tif")  # the bytes are the key, not the name

    def never(*_: Any) -> Any:
        raise AssertionError("the slide is read again")

    monkeypatch.setattr("fedml.cohort.slides.cohort._find_tissue", never)
    assert slides_of(tmp_path, SPEC, ["q"]).tiles == before.tiles
    with pytest.raises(AssertionError, match="again"):
        slides_of(tmp_path, {**SPEC, "size_px": 64}, ["q"])


def test_a_cache_that_cannot_be_written_to_stops_nothing(tmp_path: Path) -> None:
    write_tiff(tmp_path / "slides" / "p.tif", tissue(np.random.default_rng(0), True))
    (tmp_path / "cache").write_text("a file in its place")
    assert slides_of(tmp_path, SPEC, ["p"]).tiles == 30


def test_a_slide_that_changes_after_its_inspection_is_reported(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "slides" / "p.tif", tissue(np.random.default_rng(0), True))
    bag = slides_of(tmp_path, SPEC, ["p"]).bag(np.array([0]))
    assert sum(len(part) for part in bag) == 30
    write_tiff(path, tissue(np.random.default_rng(1), True))
    with pytest.raises(InputError, match=r"p\.tif: has changed since it was first read"):
        list(bag)
    path.unlink()
    with pytest.raises(InputError, match=r"p\.tif: can no longer be read"):
        list(bag)


def test_a_slide_that_changes_between_rounds_ends_no_other_site(tmp_path: Path) -> None:
    """The site refuses as for bad data; the run goes on where its quorum allows."""
    sites = [slide_site(tmp_path / n, n, k, s) for n, k, s in (("a", 8, 1), ("b", 6, 2))]
    study = make_study(("image",), **slide_changes(federation__quorum=1))
    load_cohort((str(sites[1]),), study)
    for path in (sites[1].parent / "slides").rglob("*.tif"):
        write_tiff(path, tissue(np.random.default_rng(9), True))
    run = federate(study, sites, tmp_path / "run")
    assert [r["refused"] for r in run.rounds] == [{"b": "bad-data"}] * 2


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("half", "truncated"),
        ("a hole", "unreadable"),
        ("glass", "no-tissue"),
        ("no scale", "geometry"),
        ("text", "unreadable"),
        ("small", "no-tissue"),
    ],
)
def test_a_slide_that_cannot_be_used_is_excluded(tmp_path: Path, broken: str, reason: str) -> None:
    rng = np.random.default_rng(0)
    for person in "pq":
        path = write_tiff(tmp_path / "slides" / f"{person}.tif", tissue(rng, True))
    data = bytearray(path.read_bytes())
    if broken == "half":
        path.write_bytes(data[: len(data) // 2])
    elif broken == "a hole":  # the header is whole; a tile in the middle cannot be decoded
        import tifffile

        with tifffile.TiffFile(path) as file:
            at = file.pages[0].dataoffsets[4]
        data[at : at + 200] = bytes(200)
        path.write_bytes(data)
    elif broken == "glass":
        write_tiff(path, np.full((192, 192, 3), GLASS, np.uint8))
    elif broken == "no scale":
        write_tiff(path, tissue(rng, True), mpp=None)
    elif broken == "text":
        path.write_text("no slide\n" * 100)
    else:
        write_tiff(path, tissue(rng, True)[:20, :20])
    spec = {**SPEC, "mpp": 0.5}
    slides = slides_of(tmp_path, spec, ["p", "q"], max_quarantined=0.5)
    assert slides.person.tolist() == [0]
    assert [(a.person, str(a.reason)) for a in slides.excluded] == [("q", reason)]
    assert str(path) in slides.excluded[0].text
    with pytest.raises(TooManyExcluded, match=r"q\.tif"):
        slides_of(tmp_path, spec, ["p", "q"], max_quarantined=0.4)


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"model__task": "segmentation", "model__image": {}}, "tiles have no masks"),
        ({"model__task": "segmentation"}, 'pooling = "attention" is not built'),
        ({"privacy__unit": "patient", "privacy__epsilon": 1.0, "privacy__persons": {"a": 9, "b": 9}}, 'pooling = "attention" is not built'),
        (
            {"privacy__unit": "patient", "privacy__epsilon": 1.0, "privacy__persons": {"a": 9, "b": 9}, "model__image": {}},
            "tiles are not built for",
        ),
        ({"model__image": {"norm": "batch"}}, 'norm = "batch" would depend'),
        ({"cohort__image": {"tiles": SPEC, "orientation": "RAS"}}, "remove every other key but channels and size"),
        ({"cohort__image": {"tiles": SPEC, "spacing_mm": [1.0, 1.0]}}, "remove every other key but channels and size"),
        ({"cohort__image": {"tiles": SPEC, "channels": 4}}, "three channels"),
        ({"cohort__image": {"tiles": SPEC, "size": [64, 64]}}, "three channels"),
        ({"cohort__image": {"tiles": {"size_px": 8}}}, r"\[cohort.image.tiles\] size_px"),
        ({"cohort__image": {"tiles": {"size": 32}}}, "size is not a known key"),
        ({"cohort__image": {"channels": 3}}, "size is missing"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], reported: str) -> None:
    with pytest.raises(InputError, match=reported):
        make_study(("image",), **slide_changes(**changes))


def test_a_study_of_slides_reads_back_as_itself() -> None:
    study = make_study(("image",), **slide_changes())
    assert study.cohort.image is not None
    assert (study.cohort.image.channels, study.cohort.image.size) == (3, (SIDE, SIDE))
    assert parse_study(study.canonical).sha256 == study.sha256
    written = make_study(("image",), **slide_changes(cohort__image={"tiles": SPEC, "channels": 3, "size": [SIDE, SIDE]}))
    assert written.sha256 == study.sha256


def test_a_site_and_a_study_that_do_not_fit_are_reported(tmp_path: Path) -> None:
    site = slide_site(tmp_path / "a", "a", 4, 1)
    with pytest.raises(InputError, match=r"does not define tiles"):
        read_cohort(read_site(site), make_study(("image",)))
    write_manifest(tmp_path / "a", "a", image='{ path = "slides", format = "png" }')
    with pytest.raises(InputError, match=r'format = "slide"'):
        read_cohort(read_site(site), make_study(("image",), **slide_changes()))
    write_manifest(tmp_path / "a", "a", image='{ path = "nowhere", format = "slide" }')
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        read_cohort(read_site(site), make_study(("image",), **slide_changes()))


def test_a_rehearsal_plays_on_slides_of_noise(tmp_path: Path) -> None:
    slide_site(tmp_path / "a", "a", 60, 1)
    played = rehearse(read_site(tmp_path / "a"), make_study(("image",), **slide_changes()))
    assert played.persons == 60
    assert [e.phase for e in played.entries if e.direction == "out"] == ["describe", "statistics", "round", "evaluate"]


def test_attention_over_several_images_of_a_person(tmp_path: Path) -> None:
    """Pooling by attention is not for slides alone."""
    rng = np.random.default_rng(0)
    sites = []
    for name in "ab":
        ids = [f"{name}{k:02d}" for k in range(20)]
        images = rng.integers(0, 255, (60, 8, 8), dtype=np.uint8)
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "images.npz", ids=np.repeat(ids, 3), images=images)
        write_csv(tmp_path / name / "persons.csv", ids, {"y": np.arange(20) % 2})
        sites.append(write_manifest(tmp_path / name, name, image='{ path = "images.npz", format = "npz" }'))
    study = make_study(("image",), model__image={"channels": [4], "pooling": "attention"})
    run = federate(study, sites, tmp_path / "run")
    assert "pooling.score.weight" in run.learned()
    assert run.final["metrics"]["test"]["all"]["persons"] > 0


# --- long


@pytest.mark.long
def test_local_and_simulation_are_bitwise_equal(tmp_path: Path) -> None:
    for name, persons, seed in (("a", 12, 1), ("b", 10, 2)):
        slide_site(tmp_path / "sites" / name, name, persons, seed)
    (tmp_path / "study.toml").write_text(to_toml(slide_plan()))
    local = run_json("study.toml", "--sites", "sites", "--no-track", cwd=tmp_path)
    ray = run_json("study.toml", "--sites", "sites", "--no-track", "--engine", "simulation", cwd=tmp_path)
    assert local["weights_sha256"] == ray["weights_sha256"]


@pytest.mark.long
def test_a_study_with_a_slide_of_ten_thousand_million_pixels_takes_little_memory(tmp_path: Path) -> None:
    """Two sites; at one of them, among small slides, one of 100,000 x 100,000 with 4,096 tiles of tissue, trained on and evaluated."""
    from fedml.experiments.bench.timing import run_process

    for name, persons, seed in (("a", 8, 1), ("b", 8, 2)):
        slide_site(tmp_path / "sites" / name, name, persons, seed, columns=24, rows=16)
    folder = tmp_path / "sites" / "a"
    (folder / "slides" / "a001.tif").unlink()
    size = huge_slide(folder / "slides" / "a001.tif")
    write_csv(folder / "split.csv", [f"a{k:03d}" for k in range(8)], {"part": ["train"] * 6 + ["test"] * 2})
    write_manifest(folder, "a", image='{ path = "slides", format = "slide" }', split='"split.csv"')
    plan = slide_plan(cohort__image={"tiles": {"size_px": 256}}, model__image={"pooling": "attention"}, federation__rounds=1)
    (tmp_path / "study.toml").write_text(to_toml(plan))
    line = [str(Path(sys.executable).parent / "fedml"), "run", "study.toml", "--sites", "sites", "--no-track", "--json"]
    ended = run_process(line, tmp_path, {"OMP_NUM_THREADS": "1"})
    print(f"peak {ended.peak_mb:.0f} MB in {ended.seconds:.0f} s, the slide's file {size / 1e6:.0f} MB")
    assert ended.peak_mb < 2000
