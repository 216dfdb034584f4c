"""``fedml-site deidentification`` lists what is planted in 94 places, without a value of it; the policy does what it says at each level."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from fedml.clients.site.manifest import read_site
from fedml.clients.site.quarantine import read
from fedml.clients.site.read import read_cohort
from fedml.cohort.deidentification import looked_at
from fedml.cohort.identifiers import ocr
from fedml.errors import InputError
from tests.command import quick as command
from tests.conftest import make_study, write_csv, write_manifest, write_picture
from tests.planted import CLEAN, PLANTED, WORD


def planted_site(folder: Path) -> dict[str, str]:
    """A site with everything; person -> label."""
    people = {f"{group}{k:03d}": label for group, made in (("x", PLANTED), ("c", CLEAN)) for k, label in enumerate(made)}
    for person, label in people.items():
        (PLANTED if person[0] == "x" else CLEAN)[label](folder / "images" / person)
    write_csv(folder / "persons.csv", list(people), {"y": np.arange(len(people)) % 2})
    write_manifest(folder, "oslo", image='{ path = "images", format = "dicom" }')
    return people


def test_all_that_a_rule_can_find_is_listed_and_no_value_is_shown(tmp_path: Path) -> None:
    people = planted_site(tmp_path)
    done = command("fedml-site", "deidentification", "--site", "site.toml", "--no-pixels", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert (done.returncode, report["code"], report["persons"]) == (3, 3, len(people))
    listed = {person for _, person, *_ in report["listed"]}
    assert len(PLANTED) >= 90
    assert [label for person, label in people.items() if person[0] == "x" and person not in listed] == []
    assert [label for person, label in people.items() if person[0] == "c" and person in listed] == []
    text = command("fedml-site", "deidentification", "--site", "site.toml", "--no-pixels", "--files", cwd=tmp_path)
    for said in (done.stdout, done.stderr, text.stdout, text.stderr):
        assert WORD.lower() not in said.lower()
        assert not any(value in said for value in ("19700302", "47110815", "2013030808", "9434765919"))
    assert "a name of a person" in text.stdout
    assert not (tmp_path / ".fedml").exists()  # the report is on the screen alone


def test_a_site_without_findings_ends_with_0_and_says_what_no_rule_finds(tmp_path: Path) -> None:
    for k, (label, write) in enumerate(CLEAN.items()):
        write(tmp_path / "images" / f"c{k:03d}")
        assert label
    write_csv(tmp_path / "persons.csv", [f"c{k:03d}" for k in range(len(CLEAN))], {"y": [0] * len(CLEAN)})
    write_manifest(tmp_path, "oslo", image='{ path = "images", format = "png" }')
    done = command("fedml-site", "deidentification", "--site", "site.toml", "--no-pixels", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no rule found an identifier" in done.stdout
    (tmp_path / "site.toml").write_text((tmp_path / "site.toml").read_text().replace("image = ", "# "))
    done = command("fedml-site", "deidentification", "--site", "site.toml", cwd=tmp_path)
    assert (done.returncode, "has no image" in done.stderr) == (2, True)


@pytest.mark.parametrize(("policy", "used"), [("quarantine", 28), ("strict", 27), ("warn", 30), ("refuse", None)])
def test_each_level_of_the_policy_does_what_it_says(tmp_path: Path, policy: str, used: int | None) -> None:
    """Of 30 pictures one names a person in its text, one in its file name, and one has the date of its making."""
    ids = [f"p{k:02d}" for k in range(30)]
    rng = np.random.default_rng(1)
    for person in ids[3:]:
        write_picture(tmp_path / "images" / f"{person}.png", rng.integers(0, 255, (8, 8)).astype(np.uint8))
    for person in ids[:3]:
        (tmp_path / "images" / person).mkdir(parents=True)
    picture = Image.fromarray(rng.integers(0, 255, (8, 8)).astype(np.uint8))
    text = PngInfo()
    text.add_text("Description", f"of Mrs {WORD}")
    picture.save(tmp_path / "images" / ids[0] / "a.png", pnginfo=text)
    picture.save(tmp_path / "images" / ids[1] / f"Mrs_{WORD}.png")
    text = PngInfo()
    text.add_text("Creation Time", "2019-03-02")
    picture.save(tmp_path / "images" / ids[2] / "a.png", pnginfo=text)
    write_csv(tmp_path / "persons.csv", ids, {"y": rng.integers(0, 2, 30)})
    manifest = write_manifest(tmp_path, "a", image='{ path = "images", format = "png" }')
    manifest.write_text(f'{manifest.read_text()}[policy]\ndeidentification = "{policy}"\nmax_quarantined = 0.5\n')
    site, study = read_site(manifest), make_study(("image",), sites=("a",))
    if used is None:
        with pytest.raises(InputError, match=r"p00/a\.png: is not de-identified, 1 findings.*a name of a person"):
            read_cohort(site, study)
        return
    assert len(read_cohort(site, study)) == used
    assert {e["reason"] for e in read(site.state)} <= {"not-de-identified"}
    assert WORD not in str(read(site.state))


def test_text_in_pixels_is_found_where_tesseract_is_and_said_where_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ.get("FEDML_TESSERACT"):  # a Tesseract that is not on PATH
        monkeypatch.setenv("PATH", os.environ["FEDML_TESSERACT"] + os.pathsep + os.environ["PATH"])
    if why := ocr.missing():
        planted_site(tmp_path)
        done = command("fedml-site", "deidentification", "--site", "site.toml", cwd=tmp_path)
        assert why in done.stdout
        pytest.skip(why)
    page = Image.new("L", (640, 480), 0)
    ImageDraw.Draw(page).text((20, 20), "WEXFORD, ANNA  DOB 02.03.1970", fill=255, font_size=28)
    (tmp_path / "p1").mkdir()
    page.save(tmp_path / "p1" / "a.png")
    rng = np.random.default_rng(4)
    Image.fromarray((rng.random((480, 640)) * 255).astype(np.uint8)).save(tmp_path / "p1" / "b.png")
    found = {one.where: {f.why for f in one.findings} for one in looked_at(tmp_path, ["p1"])}
    assert {"text is drawn into the pixels", "a date"} <= found["p1/a.png"]
    assert found["p1/b.png"] == set()
