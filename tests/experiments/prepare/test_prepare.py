"""Public data become site folders: what is in them, that they never change, and what is said of a bad file."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import http.server
import json
import shutil
import threading
import tomllib
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bed_reader import open_bed

from fedml.errors import InputError
from fedml.experiments.prepare import DATASETS, prepare
from fedml.experiments.prepare.source import HttpsOnly, Source, download, save, verify
from tests.command import ROOT

DATA = ROOT.parent / "shared" / "data"

Prepared = Callable[[str], tuple[Path, str]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The sites of a data set, made once, and what was said on the way."""
    made: dict[str, tuple[Path, str]] = {}

    def make(name: str) -> tuple[Path, str]:
        if not DATA.is_dir():
            pytest.skip(f"the real data are not at {DATA}")
        if name not in made:
            out = tmp_path_factory.mktemp(name) / "sites"
            said: list[str] = []
            sites = prepare(name, out, data=DATA, say=said.append)
            assert sites == sorted(path for path in out.iterdir() if path.is_dir())
            assert [p.name for p in out.parent.iterdir()] == ["sites"]
            made[name] = out, "\n".join(said)
        return made[name]

    return make


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def tree(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_site_files(prepared: Prepared) -> None:
    expected = {
        "heart": ({"clinical.csv"}, {"clinical"}),
        "pneumonia": ({"images.npz", "split.csv"}, {"image", "split"}),
        "ancestry": ({"genotypes.bed", "genotypes.bim", "genotypes.fam"}, {"variants"}),
        "trait": ({"genotypes.bed", "genotypes.bim", "genotypes.fam", "clinical.csv"}, {"variants", "clinical"}),
        "wbc": ({"images", "masks"}, {"image"}),
        "adrenal": ({"images.npz", "split.csv"}, {"image", "split"}),
        "lesions": ({"images", "masks"}, {"image"}),
        "lung": ({"omics.csv", "clinical.csv"}, {"omics", "clinical"}),
        "brca": ({"clinical.csv", "split.csv"}, {"clinical", "split"}),
    }
    assert set(expected) == set(DATASETS)
    for name, (files, keys) in expected.items():
        out, said = prepared(name)
        assert "licence: " in said
        assert "warning" not in said
        people = []
        for site in (path for path in out.iterdir() if path.is_dir()):
            assert {p.name for p in site.iterdir()} == files | {"site.toml", "persons.csv"}
            assert (site / "site.toml").read_text().startswith("# ")
            manifest = tomllib.loads((site / "site.toml").read_text())
            assert manifest["site"] == {"name": site.name}
            assert set(manifest["data"]) == keys | {"persons", "public"}
            assert manifest["data"]["public"] is True
            ids = [row["id"] for row in read(site / "persons.csv")]
            assert len(set(ids)) == len(ids)
            people += ids
        assert name == "ancestry" or len(set(people)) == len(people)


def test_heart_counts_and_values(prepared: Prepared) -> None:
    out, _ = prepared("heart")
    expected = {"cleveland": (303, 46), "budapest": (294, 36), "zurich-basel": (123, 93), "long-beach": (200, 74.5)}
    assert {site.name for site in out.iterdir()} == set(expected)
    for site, (count, percent) in expected.items():
        persons, clinical = read(out / site / "persons.csv"), read(out / site / "clinical.csv")
        assert [p["id"] for p in persons] == [c["id"] for c in clinical] == [f"{site}-{i + 1:03d}" for i in range(count)]
        assert 100 * sum(int(p["disease"]) for p in persons) / count == pytest.approx(percent, abs=0.51)
    swiss = read(out / "zurich-basel" / "clinical.csv")
    assert all(row["chol"] == "0" for row in swiss)  # undeclared missing: the study's to declare
    assert sum(row["chol"] == "0" for row in read(out / "long-beach" / "clinical.csv")) == 49
    third = ["zurich-basel-003", "35", "1", "4", "", "0", "", "0", "130", "1", "", "", "", "7"]
    assert list(swiss[2].values()) == third
    assert {row["cp"] for row in read(out / "cleveland" / "clinical.csv")} == {"1", "2", "3", "4"}  # "1.0" in the file


def test_heart_is_the_same_from_both_published_forms(prepared: Prepared, tmp_path: Path) -> None:
    out, _ = prepared("heart")
    for source in DATASETS["heart"].sources:
        content = (DATA / source.folder / source.name).read_bytes()
        (tmp_path / source.name).write_bytes(content.replace(b"NaN", b"?"))
        verify(tmp_path / source.name, source.sha256)
    prepare("heart", tmp_path / "sites", data=tmp_path, say=lambda _: None)
    assert tree(tmp_path / "sites") == tree(out)


def test_wbc_masks_lie_on_their_photographs(prepared: Prepared) -> None:
    from PIL import Image

    out, said = prepared("wbc")
    assert "cellavision: 100 cells; 304 pixels" in said
    for site, count in {"tecom": 300, "cellavision": 100}.items():
        ids = [row["id"] for row in read(out / site / "persons.csv")]
        for kind in ("images", "masks"):
            assert sorted(p.stem for p in (out / site / kind).iterdir()) == sorted(ids)
        assert len(ids) == count
        inside, outside = [], []
        for person in ids:
            grey = np.asarray(Image.open(out / site / "images" / f"{person}.png").convert("L"), float)
            mask = np.asarray(Image.open(out / site / "masks" / f"{person}.png"))
            assert mask.shape == grey.shape == (96, 96)
            assert set(np.unique(mask)) <= {0, 128, 255}
            inside.append(grey[mask == 255].mean())
            outside.append(grey[mask == 0].mean())
        assert np.mean(np.array(inside) < outside) > 0.98  # a stained nucleus is dark


def test_pneumonia_has_no_image_twice(prepared: Prepared) -> None:
    out, said = prepared("pneumonia")
    assert "images of train that are in val too: 8, dropped from val" in said
    assert "images of test that are in train too: 0" in said
    assert "images of test that are in val too: 0" in said
    seen: dict[bytes, set[tuple[str, str]]] = {}
    counts = dict.fromkeys(("train", "val", "test"), 0)
    with np.load(DATA / "medmnist" / "pneumoniamnist.npz") as original:
        official = {part: original[f"{part}_labels"][:, 0].tolist() for part in counts}
        for site in sorted(out.iterdir()):
            labels = {row["id"]: int(row["pneumonia"]) for row in read(site / "persons.csv")}
            parts = {row["id"]: row["part"] for row in read(site / "split.csv")}
            with np.load(site / "images.npz", allow_pickle=False) as arrays:
                ids, images = arrays["ids"].tolist(), arrays["images"]
            assert ids == list(labels) == list(parts)
            assert images.dtype == np.uint8
            assert images.shape == (len(ids), 28, 28)
            for person, image in zip(ids, images, strict=True):
                _, part, row = person.split("-")
                assert part == parts[person]
                assert labels[person] == official[part][int(row)]
                seen.setdefault(image.tobytes(), set()).add((part, site.name))
                counts[part] += 1
            train = [labels[person] for person in ids if parts[person] == "train"]
            assert len(train) >= 20
            assert set(train) == {0, 1}
    assert counts == {"train": 4708, "val": 516, "test": 624}
    assert all(len(places) == 1 for places in seen.values())  # one part, one hospital


def test_pneumonia_rows_are_the_original_ones(prepared: Prepared) -> None:
    out, _ = prepared("pneumonia")
    with (
        np.load(DATA / "medmnist" / "pneumoniamnist.npz") as original,
        np.load(out / "hospital-2" / "images.npz") as site,
    ):
        arrays = {part: original[f"{part}_images"] for part in ("train", "val", "test")}
        for person, image in zip(site["ids"].tolist(), site["images"], strict=True):
            _, part, row = person.split("-")
            assert (arrays[part][int(row)] == image).all()


def test_pneumonia_is_skewed_and_the_seed_decides(prepared: Prepared, tmp_path: Path) -> None:
    out, _ = prepared("pneumonia")
    rates = []
    for site in out.iterdir():
        labels = [int(row["pneumonia"]) for row in read(site / "persons.csv")]
        rates.append(sum(labels) / len(labels))
    assert max(rates) - min(rates) > 0.3
    prepare("pneumonia", tmp_path / "two", data=DATA / "medmnist", seed=2, say=lambda _: None)
    assert tree(tmp_path / "two") != tree(out)


def test_ancestry_people_and_overlap(prepared: Prepared) -> None:
    out, said = prepared("ancestry")
    rows = {site: read(out / site / "persons.csv") for site in ("hapmap3", "kg1")}
    assert {site: len(r) for site, r in rows.items()} == {"hapmap3": 957, "kg1": 1047}
    genotyped = {}
    for site in rows:
        fam = [line.split()[1] for line in (out / site / "genotypes.fam").read_text().splitlines()]
        genotyped[site] = set(fam)
        assert {row["id"] for row in rows[site]} <= set(fam)
        assert (out / site / "genotypes.bed").stat().st_size == 3 + 14079 * ((len(fam) + 3) // 4)
    assert len(genotyped["hapmap3"] & genotyped["kg1"]) == 564
    assert "564 genotyped, 546 of them with a population at both" in said
    assert "kg1: 1047 persons, 14079 variants; excluded without a known population: 45" in said
    both = {row["id"]: row["ancestry"] for row in rows["hapmap3"]}
    shared = [(both[row["id"]], row["ancestry"]) for row in rows["kg1"] if row["id"] in both]
    assert len(shared) == 546
    assert all(here == there for here, there in shared)  # the two label sources agree
    assert {row["ancestry"] for row in rows["hapmap3"]} == {"AFR", "EUR", "EAS", "SAS", "AMR"}
    builds = [tomllib.loads((out / site / "site.toml").read_text())["data"]["variants"]["build"] for site in rows]
    assert builds == ["NCBI36", "GRCh37"]
    assert _position(out / "hapmap3", "rs4970383") == 828418  # NCBI36
    assert _position(out / "kg1", "rs4970383") == 838555  # GRCh37


def test_trait_is_planted_as_the_truth_says(prepared: Prepared, tmp_path: Path) -> None:
    out, said = prepared("trait")
    truth = json.loads((out / "truth.json").read_text())
    persons = {site: pd.read_csv(out / site / "persons.csv").merge(pd.read_csv(out / site / "clinical.csv")) for site in ("hapmap3", "kg1")}
    assert {site: len(table) for site, table in persons.items()} == {"hapmap3": 957, "kg1": 501}
    assert not set(persons["hapmap3"].id) & set(persons["kg1"].id), "no person is counted twice"
    assert "excluded from kg1: 546 persons who are also in hapmap3" in said
    all_persons = pd.concat(persons.values())
    assert all_persons.tall.mean() == pytest.approx(0.25, abs=0.002)
    assert all_persons.height[all_persons.tall == 1].min() > all_persons.height[all_persons.tall == 0].max()
    planted = pd.DataFrame(truth["planted"]).set_index("id")
    assert len(planted) == 40
    assert planted.frequency.between(0.05, 0.95).all()
    parts = []
    for site in persons:
        bed = open_bed(out / site / "genotypes.bed")
        rows, columns = (pd.Index(x).get_indexer(y) for x, y in ((bed.iid, persons[site].id), (bed.sid, planted.index)))
        dosage = bed.read(index=np.s_[rows, columns], dtype="float64")
        parts.append(np.where(bed.allele_1[columns] == planted.effect_allele, dosage, 2 - dosage))
    dosage = np.concatenate(parts)
    assert np.allclose(np.nanmean(dosage, axis=0) / 2, planted.frequency, atol=1e-6)
    genetic = np.nan_to_num(dosage - 2 * planted.frequency.to_numpy()) @ planted.effect_cm
    assert genetic.std() == pytest.approx(3.5, rel=1e-3)
    ancestry = {row["id"]: row["ancestry"] for site in persons for row in read(prepared("ancestry")[0] / site / "persons.csv")}
    shift = all_persons.id.map(ancestry).map(truth["shift_cm"])
    rest = all_persons.height - 170 - genetic - shift - truth["age_cm_a_year"] * (all_persons.age - 50) - truth["sex_cm"] * all_persons.sex
    assert abs(rest.mean()) < 4 * truth["noise_sd_cm"] / np.sqrt(len(rest))
    assert rest.std() == pytest.approx(truth["noise_sd_cm"], rel=0.08)
    prepare("trait", tmp_path / "two", data=DATA, seed=2, say=lambda _: None)
    other = json.loads((tmp_path / "two" / "truth.json").read_text())
    assert {row["id"] for row in other["planted"]} != set(planted.index), "the seed decides what is planted"
    for site in persons:
        manifest = tomllib.loads((out / site / "site.toml").read_text())
        assert manifest["policy"] == {"min_count": 1}


def _position(site: Path, rsid: str) -> int:
    lines = (site / "genotypes.bim").read_text().splitlines()
    return next(int(line.split()[3]) for line in lines if line.split()[1] == rsid)


def test_ancestry_with_the_official_panel(prepared: Prepared, tmp_path: Path) -> None:
    out, _ = prepared("ancestry")
    with gzip.open(DATA / "vcf_1kg_chr21" / "1kg_phase3_chr21_start.vcf.gz", "rt") as vcf:
        called = set(next(line for line in vcf if line.startswith("#CHROM")).split()[9:])
    panel = next(file for file in DATASETS["ancestry"].sources if file.name.endswith(".panel"))
    header, *rows = (DATA / panel.folder / panel.name).read_text().splitlines(keepends=True)
    path = tmp_path / panel.folder / panel.name
    path.parent.mkdir()
    path.write_text(header + "".join(row for row in rows if row.split("\t")[0] in called), newline="")
    verify(path, (), md5="7ee5675553088230530a7fe88c22f201")  # as stated publicly for the file of the official site
    verify(path, panel.sha256[1:])
    (tmp_path / "genotypes_hapmap3_1kg").symlink_to(DATA / "genotypes_hapmap3_1kg")
    said: list[str] = []
    prepare("ancestry", tmp_path / "sites", data=tmp_path, say=said.append)
    assert "kg1: 1033 persons, 14079 variants; excluded without a known population: 59" in said
    assert read(tmp_path / "sites" / "hapmap3" / "persons.csv") == read(out / "hapmap3" / "persons.csv")


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_same_input_same_bytes(name: str, prepared: Prepared, tmp_path: Path) -> None:
    out, _ = prepared(name)
    folder = DATASETS[name].sources[0].folder if DATASETS[name].sources else ""
    (tmp_path / "sites").mkdir()  # an empty folder is as good as none
    prepare(name, tmp_path / "sites", data=DATA / folder, say=lambda _: None)
    assert tree(tmp_path / "sites") == tree(out)


# --- what is wrong, in one sentence ---------------------------------------------------------------------------------


@pytest.fixture
def heart_data(tmp_path: Path) -> Path:
    """A made-up copy of the four heart files."""
    folder = tmp_path / "uci_heart"
    folder.mkdir()
    for source in DATASETS["heart"].sources:
        (folder / source.name).write_text("63.0,1,1,145,233,1,2,150,0,2.3,3,0,6,0\n\n41,0,2,?,NaN,,0,1,0,.5,1,?,3,4\n")
    return folder


def refusal(name: str, tmp_path: Path, data: Path) -> str:
    """The sentence of the InputError, after making sure that nothing is left behind."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as caught:
        prepare(name, tmp_path / "new" / "sites", data=data, say=lambda _: None)
    assert sorted(tmp_path.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_copies_are_used_with_a_warning(heart_data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    sites = prepare("heart", tmp_path / "sites", data=heart_data, say=said.append)
    assert sum("warning" in line and "processed.va.data" in line for line in said) == 1
    assert [row["disease"] for row in read(sites[0] / "persons.csv")] == ["0", "1"]
    assert list(read(sites[0] / "clinical.csv")[1].values())[1:] == [
        "41",
        "0",
        "2",
        "",
        "",
        "",
        "0",
        "1",
        "0",
        "0.5",
        "1",
        "",
        "3",
    ]


def test_unknown_name(tmp_path: Path) -> None:
    assert 'did you mean "pneumonia"?' in refusal("pnuemonia", tmp_path, tmp_path)


def test_missing_file_and_missing_folder(heart_data: Path, tmp_path: Path) -> None:
    (heart_data / "processed.va.data").unlink()
    assert "processed.va.data is missing; download it from https://archive.ics.uci.edu/" in refusal("heart", tmp_path, heart_data)
    assert "no such folder" in refusal("heart", tmp_path, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("63,1,1,145,233,1,2,150,0,2.3,3,0,6,0\n63,1,1\n", "line 2 has 3 columns, not 14"),
        ("63,1,1,145,high,1,2,150,0,2.3,3,0,6,0\n", "'high' is not a number"),
        ("63,1,1,145,inf,1,2,150,0,2.3,3,0,6,0\n", "'inf' is not a number"),
        ("63,1,1,145,233,1,2,150,0,2.3,3,0,6,?\n", "the last column must be 0 to 4"),
        ("\n", "the file is empty"),
    ],
)
def test_malformed_heart(content: str, what: str, heart_data: Path, tmp_path: Path) -> None:
    (heart_data / "processed.switzerland.data").write_text(content)
    message = refusal("heart", tmp_path, heart_data)
    assert what in message
    assert "processed.switzerland.data" in message


def test_heart_that_is_no_text(heart_data: Path, tmp_path: Path) -> None:
    (heart_data / "processed.va.data").write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in refusal("heart", tmp_path, heart_data)


def films(path: Path, per_class: int, **changes: object) -> None:
    """A made-up film archive of the right form."""
    generator = np.random.default_rng(0)
    arrays: dict[str, object] = {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = generator.integers(0, 256, (2 * per_class, 4, 4), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.repeat([[0], [1]], per_class, axis=0)
    np.savez(path, **(arrays | changes))  # type: ignore[arg-type]


def test_malformed_films(tmp_path: Path) -> None:
    path = tmp_path / "pneumoniamnist.npz"
    path.write_bytes(b"PK\x03\x04 not a zip")
    assert "not the PneumoniaMNIST file" in refusal("pneumonia", tmp_path, tmp_path)
    films(path, 10, val_labels=np.full((20, 1), 2))
    assert "a label other than 0 and 1" in refusal("pneumonia", tmp_path, tmp_path)
    films(path, 10, train_images=np.zeros((20, 4, 4)))
    assert "float64" in refusal("pneumonia", tmp_path, tmp_path)
    films(path, 10, test_images=np.array([{}], dtype=object))
    assert "not the PneumoniaMNIST file" in refusal("pneumonia", tmp_path, tmp_path)
    films(path, 30)
    assert "no partition into 5 hospitals" in refusal("pneumonia", tmp_path, tmp_path)


def test_a_test_film_is_never_dropped(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (600, 4, 4), dtype=np.uint8)
    said: list[str] = []
    films(
        tmp_path / "pneumoniamnist.npz",
        300,
        train_images=images,
        test_images=images[[0, 1, 300, 301]],
        test_labels=np.array([[0], [0], [1], [1]]),
    )
    sites = prepare("pneumonia", tmp_path / "sites", data=tmp_path, say=said.append)
    ids = {row["id"] for site in sites for row in read(site / "persons.csv")}
    assert {f"pneumonia-test-{i:05d}" for i in range(4)} <= ids
    assert ids.isdisjoint({f"pneumonia-train-{i:05d}" for i in (0, 1, 300, 301)})
    assert "images of test that are in train too: 4, dropped from train" in said


def test_malformed_genotypes(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip(f"the real data are not at {DATA}")
    data = tmp_path / "data"
    data.mkdir()
    for source in DATASETS["ancestry"].sources:
        shutil.copyfile(DATA / source.folder / source.name, data / source.name)
    bed, fam = data / "HM3_thinned_autosomal_overlap.bed", data / "HM3_thinned_autosomal_overlap.fam"
    panel = data / "integrated_call_samples_v3.20130502.ALL.panel"

    def broken(path: Path, content: bytes) -> str:
        good = path.read_bytes()
        path.write_bytes(content)
        message = refusal("ancestry", tmp_path, data)
        path.write_bytes(good)
        return message

    assert "not a variant-major PLINK .bed" in broken(bed, b"\x6c\x1b\x00" + bed.read_bytes()[3:])
    assert "need 3378963" in broken(bed, bed.read_bytes()[:-1])
    assert "line 2 has 2 columns, not 6" in broken(fam, b"1 A 0 0 1 2\n1 B\n")
    assert "A is in the file twice" in broken(fam, b"1 A 0 0 1 2\n1 A 0 0 1 2\n")
    assert "no column 'super_pop'" in broken(panel, b"sample\tpop\nHG00096\tGBR\n")
    assert "line 2 has 1 columns" in broken(panel, b"sample\tpop\tsuper_pop\nHG00096\n")
    assert "no person has a known population" in broken(panel, b"sample\tpop\tsuper_pop\nX\tGBR\tEUR\n")


def test_out_in_use(heart_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "sites"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not empty"):
        prepare("heart", out, data=heart_data, say=lambda _: None)
    with pytest.raises(InputError, match="is a file or a link"):
        prepare("heart", out / "mine.txt", data=heart_data, say=lambda _: None)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


# --- downloads ------------------------------------------------------------------------------------------------------


def source(url: str) -> Source:
    return Source(name="file.txt", folder="folder", url=url, sha256=("0" * 64,))


def test_verify(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(b"abc")
    verify(path, [hashlib.sha256(b"abc").hexdigest()])
    verify(path, [], md5="900150983cd24fb0d6963f7d28e17f72")
    with pytest.raises(InputError, match=r"file\.txt: its SHA-256 ba7816bf.*--data"):
        verify(path, ["0" * 64], md5="0" * 32)


def test_what_arrives_is_verified(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    good = dataclasses.replace(source("https://example.org/file.txt"), sha256=(hashlib.sha256(b"abc").hexdigest(),))
    save(BytesIO(b"abc"), good, path)
    assert path.read_bytes() == b"abc"
    for content, file, what in (
        (b"abd", good, "is not that of a tested copy"),
        (b"abc", dataclasses.replace(good, max_bytes=2), "more than the 2 bytes expected"),
    ):
        with pytest.raises(InputError, match=what):
            save(BytesIO(content), file, path)
        assert list(tmp_path.iterdir()) == []


@pytest.fixture
def plain_server() -> Iterator[tuple[str, list[str]]]:
    """An http server on this machine, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"abc")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_plain_http_is_never_asked(plain_server: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = plain_server
    with pytest.raises(InputError, match="only https"):
        download(source(f"http://{address}/file.txt"), tmp_path)
    with pytest.raises(InputError, match="only https"):
        download(source(f"file://{tmp_path}/file.txt"), tmp_path)
    request = urllib.request.Request("https://example.org/file.txt")
    with pytest.raises(InputError, match="only https"):
        HttpsOnly().redirect_request(request, BytesIO(), 302, "Found", Message(), f"http://{address}/file.txt")
    assert asked == []


def test_no_secure_answer_names_the_way_out(plain_server: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = plain_server  # speaks http where https is asked for: the handshake fails
    with pytest.raises(InputError, match=r"could not be downloaded .* --data"):
        download(source(f"https://{address}/file.txt"), tmp_path, timeout=5)
    assert asked == []
    assert list(tmp_path.iterdir()) == []


def test_every_source_is_pinned() -> None:
    for dataset in DATASETS.values():
        for file in dataset.sources:
            assert file.url.startswith("https://")
            assert file.name in urllib.parse.unquote(file.url)
            assert all(len(checksum) == 64 for checksum in file.sha256)
            if DATA.is_dir():
                path = DATA / file.folder / file.name
                assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256[0]
                assert path.stat().st_size <= file.max_bytes
