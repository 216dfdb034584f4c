"""``fedml-site index --verify`` finds a file whose content changed although its state did not, and the next start reads it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from fedml.cache_entries import SETTLED, stamp_of
from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import read_cohort
from tests.command import quick as command
from tests.conftest import make_study, write_csv, write_manifest
from tests.dicom_files import write_series
from tests.inputs import images_of


def test_a_content_that_no_state_tells_is_found_on_request(tmp_path: Path) -> None:
    ids = [f"p{k:02d}" for k in range(24)]
    rng = np.random.default_rng(1)
    about = {"PatientIdentityRemoved": "YES", "DeidentificationMethod": "x"}
    for person in ids:
        write_series(tmp_path / "images" / person, rng.integers(0, 900, (2, 8, 8)).astype(np.uint16), PatientID=person, **about)
    write_csv(tmp_path / "persons.csv", ids, {"y": np.arange(24) % 2})
    site = read_site(write_manifest(tmp_path, "a", image='{ path = "images", format = "dicom" }'))
    image = {"size": [8, 8, 2], "orientation": "RAS", "window": [-1024, 0]}
    study = make_study(("image",), sites=("a",), cohort__image=image)
    time.sleep(SETTLED + 0.2)
    before = images_of(read_cohort(site, study)).pixels[:]
    said = command("fedml-site", "index", "--verify", cwd=tmp_path)
    assert (said.returncode, "48 files were read again, 0 of them" in said.stdout) == (0, True)
    assert "headers of 48 files" in said.stdout
    victim = tmp_path / "images" / ids[5] / "1.dcm"
    data = bytearray(victim.read_bytes())
    data[-3] ^= 1
    victim.write_bytes(bytes(data))
    digests = tmp_path / ".fedml" / "cache" / "images" / "digests.json"
    kept = json.loads(digests.read_bytes())
    kept[str(victim.resolve())][1] = stamp_of(victim)  # as on a file system that keeps no time of a change
    digests.write_text(json.dumps(kept))
    assert np.array_equal(images_of(read_cohort(site, study)).pixels[:], before)  # no state tells it
    said = command("fedml-site", "index", "--verify", cwd=tmp_path)
    assert (said.returncode, "48 files were read again, 1 of them" in said.stdout) == (1, True)
    assert ids[5] not in said.stdout
    assert not np.array_equal(images_of(read_cohort(site, study)).pixels[:], before)
    assert command("fedml-site", "index", "--verify", cwd=tmp_path).returncode == 0
