"""What third-party libraries say about a file is shown by no command: real files that make them complain, with names planted where they
quote them; the commands run as processes, and everything that they print, write and send is searched."""

from __future__ import annotations

import logging
import struct
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from fedml.quiet import frames_of, told
from tests.command import command
from tests.conftest import make_plan, to_toml, write_csv, write_manifest
from tests.dicom_files import write_series

NAME = "Wexfordquill"
IDS = [f"p{k:02d}" for k in range(24)]
RNG = np.random.default_rng(2)


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH", group, number) + vr + struct.pack("<H", len(value)) + value


def dicom_site(folder: Path) -> Path:
    """Series of two slices; pydicom warns of the UID of the first person, and cannot read a number of the second."""
    for k, person in enumerate(IDS):
        write_series(folder / "images" / person, RNG.integers(0, 900, (2, 8, 8)).astype(np.uint16), PatientID=person, PatientName=person,
                     PatientIdentityRemoved="YES", DeidentificationMethod="x", SeriesInstanceUID=f"1.2.3.{k + 1}")  # fmt: skip
    for path in (folder / "images" / IDS[0]).iterdir():
        data = path.read_bytes()
        uid = element(8, 0x1155, b"UI", f"1.2.{NAME} 1970".encode())
        at = data.index(element(16, 16, b"PN", IDS[0].encode()))
        path.write_bytes(data[:at] + uid + data[at:])
    for path in (folder / "images" / IDS[1]).iterdir():
        data = path.read_bytes()
        path.write_bytes(data.replace(element(24, 0x50, b"DS", b"3"), element(24, 0x50, b"DS", NAME.encode())))
    return finished(folder, "dicom")


def nifti_site(folder: Path) -> Path:
    """Volumes; nibabel's logger, which has a handler of its own, complains of a header, and its error quotes another."""
    (folder / "images").mkdir(parents=True)
    for k, person in enumerate(IDS):
        image = nibabel.Nifti1Image(RNG.random((8, 8, 2)).astype(np.float32), np.eye(4))
        path = folder / "images" / f"{person}.nii"
        nibabel.save(image, path)
        data = bytearray(path.read_bytes())
        if k == 0:
            struct.pack_into("<f", data, 76, 0.5)  # pixdim[0]
        if k == 1:
            struct.pack_into("<h", data, 70, 7000)  # a datatype that does not exist
        path.write_bytes(bytes(data))
    return finished(folder, "nifti")


def finished(folder: Path, kind: str) -> Path:
    write_csv(folder / "persons.csv", IDS, {"y": RNG.integers(0, 2, len(IDS))})
    manifest = write_manifest(folder, "a", image=f'{{ path = "images", format = "{kind}" }}')
    manifest.write_text(manifest.read_text() + "[policy]\nmax_quarantined = 0.5\n")
    return manifest


def written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("make", [dicom_site, pytest.param(nifti_site, marks=pytest.mark.long)])
def test_check_and_run_show_none_of_what_libraries_say(tmp_path: Path, make: object) -> None:
    make(tmp_path / "sites" / "a")  # type: ignore[operator]
    study = tmp_path / "study.toml"
    study.write_text(to_toml(make_plan(("image",), sites=("a",))))
    words = [("fedml-site", "check", study, "--site", tmp_path / "sites" / "a" / "site.toml")]
    words.append(("fedml", "run", study, "--sites", tmp_path / "sites", "--debug"))
    for line in words:
        done = command(*line, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        said = done.stdout + done.stderr
        assert NAME.lower() not in said.lower()
        assert not any(f"{library}:" in said for library in ("pydicom", "nibabel", "pixdim", "UserWarning"))
        library = "nibabel" if make is nifti_site else "pydicom"
        assert " not shown, because " in done.stderr
        assert library in done.stderr.partition("quote values of files: ")[2]
    kept = b"".join(written(tmp_path / name) for name in ("out", "mlruns", "sites/a/.fedml"))
    assert NAME.lower().encode() not in kept.lower()


SPEAKING = """
import logging, os, sys, threading, warnings
from fedml.cli import guarded
import typer
app = typer.Typer()

def fail(): raise ValueError("Wexfordquill in a thread")

@app.command()
def speak():
    mine = logging.getLogger("fedml.site")
    loud = logging.getLogger("loud"); loud.addHandler(logging.StreamHandler()); loud.setLevel(1)
    loud.error("Wexfordquill %s", "of a handler of its own", exc_info=ValueError("Wexfordquill"))
    logging.getLogger("other.part").critical("Wexfordquill")
    warnings.warn("Wexfordquill")
    logging.captureWarnings(True); warnings.warn("Wexfordquill twice")
    os.write(2, b"[W::vcf_parse] Wexfordquill\\n")
    thread = threading.Thread(target=fail); thread.start(); thread.join()
    mine.warning("a sentence of ours")
    raise KeyError("Wexfordquill")

@app.command()
def quiet(): pass
guarded(app)
"""


def test_no_way_out_is_left_open(tmp_path: Path) -> None:
    """Handlers that a library adds, warnings, descriptor 2, an exception of a thread, an exception of the command, with and without
    --debug."""
    (tmp_path / "speaking.py").write_text(SPEAKING)
    for more in ((), ("--debug",)):
        words = [sys.executable, "speaking.py", "speak", *more]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
        said = done.stderr.replace('raise KeyError("Wexfordquill")', "").replace('raise ValueError("Wexfordquill in a thread")', "")
        said = said.replace("def fail(): raise", "").replace('ValueError("Wexfordquill in a thread")', "")  # lines of the code itself
        assert done.returncode == 1
        assert "Wexfordquill" not in said + done.stdout
        assert "a sentence of ours" in said
        assert "unexpected KeyError" in said
        found = said.partition("quote values of files: ")[2]
        assert all(part in found for part in ("loud 1", "other 1", "warnings 2", "compiled code 1")), said
    done = subprocess.run([sys.executable, "speaking.py", "quiet"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_reading_as_a_library_is_quiet_too_and_leaves_the_logging_of_the_program(tmp_path: Path) -> None:
    """Who imports the package alone and has set up logging before pydicom was imported sees none of it; and sees its own records."""
    dicom_site(tmp_path)
    text = """
import logging, sys
from pathlib import Path
logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s", stream=sys.stderr)
from fedml.cohort.dicom.deidentified import findings
findings(Path(sys.argv[1]))
import pydicom
logging.getLogger("pydicom").warning("outside")
logging.getLogger("program").warning("its own")
"""
    words = [sys.executable, "-c", text, str(tmp_path / "images" / IDS[0] / "0.dcm")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr.splitlines() == ["pydicom: outside", "program: its own"]


def test_a_traceback_has_the_code_and_not_the_text(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        try:
            int(NAME)
        except ValueError as error:
            raise RuntimeError(NAME) from error

    with pytest.raises(RuntimeError) as raised:
        fail()
    shown = frames_of(raised.value)
    assert NAME not in shown.replace("raise RuntimeError(NAME)", "")
    assert all(part in shown for part in ("RuntimeError", "ValueError", "int(NAME)"))
    assert told(raised.value).startswith("RuntimeError (site/test_nothing_raw.py:")
    logging.getLogger("program").warning("seen")  # the factory of records is the usual one outside of hush
    assert caplog.messages == ["seen"]
