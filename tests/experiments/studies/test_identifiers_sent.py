"""What is planted in the DICOM files of a site, and in their names, is in nothing that the site sends and in nothing that a run keeps.

``test_deidentified.py`` plants the same places and finds them. Here a federation runs on such files, as ``fedml run`` does, every message
recorded where it would leave. The search looks for UTF-8, UTF-16, Latin-1, escapes, hex and Base64, also inside what is deflated or zipped.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest

from fedml.clients.site.quarantine import read
from tests.conftest import image_site, make_plan, public_data, to_toml, write_csv, write_manifest
from tests.fedml.cohort.dicom.test_deidentified import PLACES
from tests.wire import find, needles

CLEAN = 24  # persons in whose files nothing is planted
RECORDING = """
import itertools, os, sys
from pathlib import Path
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from fedml.experiments.cli import main
from fedml.flower.grid import InProcessGrid

folder, numbers = Path(os.environ["RECORD"]), itertools.count()
push, pull = InProcessGrid.push_messages, InProcessGrid.pull_messages

def keep(message, way):
    data = message_to_proto(message).SerializeToString() + b"".join(o.deflate() for o in get_all_nested_objects(message).values())
    (folder / f"{next(numbers):04d}.{way}").write_bytes(data)
    return message

InProcessGrid.push_messages = lambda self, messages: push(self, [keep(m, "received") for m in messages])
InProcessGrid.pull_messages = lambda self, ids: [keep(m, "sent") for m in pull(self, ids)]
main()
"""


def planted_site(folder: Path, policy: str) -> dict[str, set[str]]:
    """A site of real slices, a place a person. What was planted: ``values`` in files, ``names`` of files and folders, ``ids``."""
    source = sorted((public_data("dicom_mr") / "UCSF-BR-06/image_dce_ser").glob("*.dcm"))
    planted: dict[str, set[str]] = {"values": set(), "names": set(), "ids": set()}
    ids = []
    for k, place in enumerate([*PLACES, "BurnedInAnnotation", "cut short", *["nowhere"] * CLEAN]):
        letters = chr(97 + k // 26) + chr(97 + k % 26)  # a name with a digit would be taken for a code
        person, value, name = f"case-{k:03d}-of-a", f"Wexford{letters}quill", f"Thornby{letters}marsh"
        dataset = pydicom.dcmread(source[k % len(source)])
        dataset.PatientID, dataset.SpecificCharacterSet = person, "ISO_IR 192"
        if place in PLACES:
            PLACES[place](dataset, value)
            planted["values"].add(value)
        elif place == "BurnedInAnnotation":
            dataset.BurnedInAnnotation, dataset.PatientName = "YES", value
            planted["values"].add(value)
        path = folder / "images" / person / f"{name}Folder" / f"{name}File.dcm"
        path.parent.mkdir(parents=True)
        dataset.save_as(path)
        if place == "cut short":
            path.write_bytes(path.read_bytes()[:-900])
        planted["names"] |= {f"{name}Folder", f"{name}File"}
        planted["ids"].add(person)
        ids.append(person)
    write_csv(folder / "persons.csv", ids, {"y": np.random.default_rng(3).integers(0, 2, len(ids))})
    manifest = write_manifest(folder, "a", image='{ path = "images", format = "dicom" }')
    manifest.write_text(f'{manifest.read_text()}[policy]\ndeidentification = "{policy}"\nmax_quarantined = 0.9\n')
    return planted


def wanted(texts: Iterable[str]) -> dict[bytes, str]:
    """The needles of ``texts``, in two bytes a letter too, plainly and as Base64 wherever it begins."""
    out = needles(list(texts))
    for text in set(out.values()):
        for wide in (text.encode("utf-16-le"), text.encode("utf-16-be")):
            out[wide] = text
            for before in range(3):
                whole = base64.b64encode(bytes(before) + wide).rstrip(b"=")
                out[whole[-(-before * 8 // 6) : (before + len(wide)) * 8 // 6]] = text
    return out


def unpacked(data: bytes) -> Iterator[bytes]:
    """``data``, and what is inside it as a zlib or gzip stream or as a zip archive."""
    yield data
    for magic, bits in ((b"\x78\x01", 15), (b"\x78\x9c", 15), (b"\x78\xda", 15), (b"\x1f\x8b\x08", 47)):
        at = data.find(magic)
        while at >= 0:
            with suppress(zlib.error):
                yield zlib.decompressobj(bits).decompress(data[at:], 2**26)
            at = data.find(magic, at + 1)
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from (archive.read(name) for name in archive.namelist())


def found_in(parts: Iterable[bytes], texts: Iterable[str]) -> set[str]:
    looked = wanted(texts)
    return {hit for part in parts for hit in find(unpacked(part), looked)}


def test_the_search_finds_what_is_hidden_as_well() -> None:
    text = "Wexford001Quill"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.txt", "x" * 99 + text)
    hidden = [text.encode(), text.encode("utf-16-le"), text.encode("utf-16-be"), b"ab" + zlib.compress(b"y" * 50 + text.encode()) + b"z"]
    hidden += [base64.b64encode(b"q" * n + text.encode() + b"rest") for n in range(3)]
    hidden += [base64.b64encode(b"q" * n + text.encode("utf-16-le") + b"rest") for n in range(3)]
    hidden += [archive.getvalue(), text.encode().hex().encode()]
    assert all(found_in([data], [text, "Somebody else"]) == {text} for data in hidden)
    assert found_in([b"Wexford002Quill"], [text]) == set()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The value length")
@pytest.mark.parametrize("policy", ["quarantine", "warn"])
def test_nothing_planted_is_sent_or_kept_by_a_run(tmp_path: Path, policy: str) -> None:
    planted = planted_site(tmp_path / "sites" / "a", policy)
    image_site(tmp_path / "sites" / "b", "b", 40, 5, (16, 16))
    assert len(planted["values"]) > 50
    plan = make_plan(("image",), cohort__image={"size": [16, 16], "crop": True}, model__image={"net": "cnn", "channels": [4]})
    (tmp_path / "study.toml").write_text(to_toml(plan))
    (tmp_path / "record").mkdir()
    words = [sys.executable, "-W", "ignore", "-c", RECORDING, "run", "study.toml", "--sites", "sites", "--runs", "runs"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {"RECORD": str(tmp_path / "record")}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]

    messages = sorted((tmp_path / "record").iterdir())
    assert sum(path.suffix == ".sent" for path in messages) >= 2 * 5  # describe, statistics, two rounds, the last
    kept = [p for part in ("runs", "mlruns", "mlflow.db") for p in [tmp_path / part, *(tmp_path / part).rglob("*")] if p.is_file()]
    assert {"events.jsonl", "mlflow.db"} <= {path.name for path in kept}
    everything = set().union(*planted.values())
    for path in (*messages, *kept):
        assert found_in([path.read_bytes(), str(path.relative_to(tmp_path)).encode()], everything) == set(), path
    assert found_in([done.stdout], everything) == set()
    assert found_in([done.stderr], planted["values"]) == set()

    entries = read(tmp_path / "sites" / "a" / ".fedml")  # the site's own list tells who and which file, and never a value
    reported = [json.dumps(entries, ensure_ascii=False).encode()]
    excluded = {e["person"] for e in entries}
    assert found_in(reported, planted["values"]) == set()
    assert len(found_in(reported, planted["names"])) == 2 * len(excluded)
    reasons = {e["reason"] for e in entries}
    if policy == "quarantine":
        assert reasons == {"not-de-identified", "truncated"}
        assert len(excluded) >= 12
    else:
        assert reasons == {"truncated"}
        assert len(excluded) == 1
        assert len(found_in([done.stderr], planted["names"])) >= 2 * 12  # the site's own log, which in this engine shares the process
