"""Bad input, as a user meets it: exit 2, one sentence that names the file and the key, nothing half-written."""

from __future__ import annotations

import gzip
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pysam
import pytest

from fedml.synthetic.synthetic import Size, write_synthetic
from tests.command import STUDIES
from tests.command import quick as command


@pytest.fixture(scope="module")
def clean_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small synthetic hospitals."""
    out = tmp_path_factory.mktemp("synthetic") / "sites"
    write_synthetic(out, Size(sites=3, persons=24, variants=30, image_size=24), seed=3)
    return out


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The demo study, in a place where it may be broken."""
    path = tmp_path / "demo.toml"
    shutil.copyfile(STUDIES / "demo.toml", path)
    return path


@pytest.fixture
def sites(tmp_path: Path, clean_sites: Path) -> Path:
    """The hospitals, in a place where they may be broken."""
    return Path(shutil.copytree(clean_sites, tmp_path / "sites"))


def replace(path: Path, old: str, new: str) -> None:
    """Changes one thing in a text file that must be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def unknown_key(study: Path, sites: Path) -> list[str]:
    replace(study, "local_epochs = 1", "local_epoch = 1")
    return ["demo.toml", "[training] local_epoch", 'did you mean "local_epochs"']


def wrong_type(study: Path, sites: Path) -> list[str]:
    replace(study, "rounds = 20", 'rounds = "many"')
    return ["demo.toml", "[federation] rounds", "integer"]


def impossible(study: Path, sites: Path) -> list[str]:
    replace(study, "quorum = 2", "quorum = 7")
    return ["demo.toml", "quorum is 7", "lists only 3"]


def unknown_strategy_key(study: Path, sites: Path) -> list[str]:
    replace(study, 'name = "fedavg"', 'name = "fedprox"\nmuu = 0.1')
    return ["[strategy] muu", 'did you mean "mu"']


def unknown_network(study: Path, sites: Path) -> list[str]:
    replace(study, 'net = "cnn"', 'net = "resnet81"')
    return ["[model] image net", "resnet81", 'did you mean "resnet18"']


def no_study(study: Path, sites: Path) -> list[str]:
    study.unlink()
    return ["demo.toml", "cannot be read"]


def missing_file(study: Path, sites: Path) -> list[str]:
    (sites / "porto" / "clinical.csv").unlink()
    return ["porto/clinical.csv", "no such file", "site.toml"]


def person_twice(study: Path, sites: Path) -> list[str]:
    table = sites / "oslo" / "persons.csv"
    table.write_text(table.read_text() + table.read_text().splitlines()[1] + "\n")
    return ["oslo/persons.csv", "2 rows"]


def strange_label(study: Path, sites: Path) -> list[str]:
    table = sites / "utrecht" / "persons.csv"
    table.write_text(re.sub(r"(?m)^(utrecht-\d+),[01],", r"\1,2,", table.read_text(), count=1))
    return ["utrecht/persons.csv", '"disease"', '"2"', "one of: 0, 1"]


def truncated_images(study: Path, sites: Path) -> list[str]:
    images = sorted(p for p in (sites / "oslo" / "images").iterdir() if p.is_file())[:6]  # a single one would be excluded
    for image in images:
        image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    return [f"oslo/images/{images[0].name}", "is truncated", "6 of", "[policy] max_quarantined is 0.1"]


def headerless_vcf(study: Path, sites: Path) -> list[str]:
    vcf = sites / "porto" / "cohort.vcf.gz"
    lines = [line for line in gzip.decompress(vcf.read_bytes()).decode().splitlines(True) if not line.startswith("#")]
    with pysam.BGZFile(str(vcf), "wb") as file:
        file.write("".join(lines).encode())
    return ["porto/cohort.vcf.gz", "no valid VCF", "header"]


def truncated_vcf(study: Path, sites: Path) -> list[str]:
    vcf = sites / "porto" / "cohort.vcf.gz"
    vcf.write_bytes(vcf.read_bytes()[: vcf.stat().st_size // 2])
    return ["porto/cohort.vcf.gz", "truncated"]


def empty_test_part(study: Path, sites: Path) -> list[str]:
    replace(study, "[cohort.clinical]", "[cohort.split]\ntrain = 0.9\nval = 0.1\ntest = 0.0\n\n[cohort.clinical]")
    return ["test part", "[cohort] split"]


def not_in_roster(study: Path, sites: Path) -> list[str]:
    replace(sites / "oslo" / "site.toml", 'name = "oslo"', 'name = "oslow"')
    return ['no site "oslo"', 'did you mean "oslow"', "[federation] sites"]


def different_columns(study: Path, sites: Path) -> list[str]:
    replace(sites / "utrecht" / "clinical.csv", "crp", "crp_mg")
    return ["utrecht/clinical.csv", 'no column "crp"', 'did you mean "crp_mg"', "[cohort.clinical] columns"]


def manifest_key(study: Path, sites: Path) -> list[str]:
    replace(sites / "oslo" / "site.toml", "persons =", "person =")
    return ["oslo/site.toml", "[data] person", 'did you mean "persons"']


def capital_site(study: Path, sites: Path) -> list[str]:
    replace(sites / "oslo" / "site.toml", 'name = "oslo"', 'name = "Oslo"')
    return ["oslo/site.toml", '[site] name is "Oslo"', "lower-case letters, digits", 'write "oslo"']


def capital_roster(study: Path, sites: Path) -> list[str]:
    replace(study, '"oslo"', '"São Paulo"')
    return ["demo.toml", "[federation] sites, item", 'is "São Paulo"', "lower-case letters, digits", 'write "sao-paulo"']


def no_labels(study: Path, sites: Path) -> list[str]:
    table = sites / "utrecht" / "persons.csv"
    table.write_text(re.sub(r"(?m)^(utrecht-\d+),[01],", r"\1,,", table.read_text()))
    return ["utrecht/persons.csv", "no person has a label", 'column "disease" is empty', "[cohort] target"]


BREAKS = [
    capital_site, capital_roster, no_labels,
    unknown_key, wrong_type, impossible, unknown_strategy_key, unknown_network, no_study, missing_file, person_twice, strange_label,
    truncated_images, headerless_vcf, truncated_vcf, empty_test_part, not_in_roster, different_columns, manifest_key,
]  # fmt: skip


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda f: f.__name__)
def test_one_sentence_and_nothing_written(break_it: Callable[[Path, Path], list[str]], study: Path, sites: Path, tmp_path: Path) -> None:
    expected = break_it(study, sites)
    before = sorted(p for p in tmp_path.rglob("*"))
    done = command("fedml", "run", study, "--sites", sites, cwd=tmp_path)
    assert done.returncode == 2, (done.returncode, done.stderr)
    sentences = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(sentences) == 1, done.stderr
    assert sentences[0].startswith("error: ")
    for part in expected:
        assert part in sentences[0]
    assert "Traceback" not in done.stderr
    assert sorted(p for p in tmp_path.rglob("*") if ".fedml" not in p.parts) == before
    assert not list(tmp_path.rglob("*partial*")), "a site's good genotype file may have been packed by then, whole"


def test_debug_shows_the_traceback(study: Path, sites: Path, tmp_path: Path) -> None:
    unknown_key(study, sites)
    done = command("fedml", "check", study, "--debug", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_site_outside_the_roster(study: Path, sites: Path, tmp_path: Path) -> None:
    replace(sites / "oslo" / "site.toml", 'name = "oslo"', 'name = "bergen"')
    done = command("fedml-site", "check", study, "--site", sites / "oslo", cwd=tmp_path)
    assert done.returncode == 2
    assert 'site "bergen" is not in the roster of study "demo"' in done.stderr


@pytest.mark.parametrize("words", [("--set", "name=other"), ("--set", "federation.rounds"), ("--engine", "lokal"), ("--sites", "nowhere")])
def test_options(words: tuple[str, str], study: Path, sites: Path, tmp_path: Path) -> None:
    given = [study, *([] if words[0] == "--sites" else ["--sites", sites]), *words]
    done = command("fedml", "run", *given, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words[1].split("=")[0] in done.stderr


@pytest.mark.parametrize(
    ("name", "fix"), [("Oslo", 'write "oslo"'), ("Sankt Gallen", 'write "sankt-gallen"'), ("-", "allowed are lower-case")]
)
def test_a_new_site_with_another_name_gets_one_that_is_allowed(name: str, fix: str, tmp_path: Path) -> None:
    done = command("fedml-site", "init", "--", name, cwd=tmp_path)
    assert done.returncode == 2
    assert fix in done.stderr
    assert "^[a-z" not in done.stderr
    assert list(tmp_path.iterdir()) == []
