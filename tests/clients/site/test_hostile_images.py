"""Files made to harm, among those of a site, in each format that names other files or promises sizes: ``fedml-site check`` sets their
persons aside within its memory, and nothing of a file outside the folder is read, kept or shown."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from fedml.clients.site.manifest import read_site
from fedml.clients.site.quarantine import read
from tests.conftest import write_csv, write_manifest

RNG = np.random.default_rng(3)
SECRET = np.frombuffer(b"GEHEIMNIS!" * 60, "<i2")  # 600 bytes, an image of 6 x 5 x 10 voxels
SIZE = (6, 5, 10)
GIB = 2**30
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = {packed}\n"
    "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 2\nDimSize = {size}\nElementType = MET_SHORT\n"
    "ElementDataFile = {file}\n"
)  # fmt: skip
NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: {size}\nspace directions: (1,0,0) (0,1,0) (0,0,2)\n"
    "endian: little\nencoding: {packed}\nspace origin: (0,0,0)\n{file}\n"
)  # fmt: skip


STUDY = """[study]
name = "hostile"
question = "Is it?"
purpose = "DUO:0000042"
[cohort]
inputs = ["image"]
target = "y"
classes = [0, 1]
image = {{ size = [{size}] }}
[model]
task = "classification"
[federation]
sites = ["a"]
quorum = 1
"""


def meta(file: str = "LOCAL", size: str = "6 5 10", packed: str = "False", body: bytes = b"") -> bytes:
    return META.format(file=file, size=size, packed=packed).encode() + body


def nrrd(file: str = "", size: str = "6 5 10", packed: str = "raw", body: bytes = b"") -> bytes:
    return NRRD.format(file=file, size=size, packed=packed).encode() + body


def good() -> bytes:
    return RNG.integers(0, 1000, 300, "<i2").tobytes()


def zeros(gibibytes: int, *, gzipped: bool = False) -> bytes:
    """So many zeros, compressed to a thousandth: one block, repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    stream = block * (64 * gibibytes) + packer.flush()
    if gzipped:
        return b"\x1f\x8b\x08" + bytes(7) + stream + bytes(8)
    return b"\x78\xda" + stream + struct.pack(">I", gibibytes * GIB % 65521 << 16 | 1)


def tiff(path: Path, *, strip: bytes = b"", **tags: int) -> None:
    """A page whose header says other sizes than it has; ``strip``: its pixels, compressed."""
    tifffile.imwrite(path, RNG.integers(0, 255, (9, 9), np.uint8), compression="zlib" if strip else None)
    data = bytearray(path.read_bytes())
    if strip:
        tags, data = {"offsets": len(data), "counts": len(strip)}, data + strip
    numbers = {"width": 256, "rows": 257, "counts": 279, "offsets": 273}
    at = struct.unpack("<I", data[4:8])[0]
    for k in range(struct.unpack("<H", data[at : at + 2])[0]):
        entry = at + 2 + 12 * k
        for name, value in tags.items():
            if struct.unpack("<H", data[entry : entry + 2])[0] == numbers[name]:
                data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, value)
    path.write_bytes(data)


def outside(folder: Path) -> Path:
    (folder / "secret.raw").write_bytes(SECRET.tobytes())
    return folder / "secret.raw"


def link(folder: Path, images: Path, header: str, name: str, body: Callable[..., bytes], key: str) -> None:
    """A header beside a link of the right name, which leads out of the folder."""
    (images / f"{header}").write_bytes(body(f"{key}{name}"))
    (images / name).symlink_to(outside(folder))


HOSTILE: dict[str, dict[str, Callable[[Path, Path], object]]] = {
    "mha": {
        "above": lambda f, i: (outside(f), (i / "above.mhd").write_bytes(meta("../secret.raw"))),
        "absolute": lambda f, i: (i / "absolute.mhd").write_bytes(meta(str(outside(f)))),
        "linked": lambda f, i: link(f, i, "linked.mhd", "linked.raw", meta, ""),
        "another": lambda f, i: (i / "another.mhd").write_bytes(meta("c000.mha")),
        "list": lambda f, i: (i / "list.mhd").write_bytes(meta("LIST\n../secret.raw")),
        "pattern": lambda f, i: (i / "pattern.mhd").write_bytes(meta("../secret%01d.raw 1 1 1")),
        "huge": lambda f, i: (i / "huge.mha").write_bytes(meta(size="60000 60000 60000", body=b"\0" * 600)),
        "negative": lambda f, i: (i / "negative.mha").write_bytes(meta(size="-6 5 -10", body=b"\0" * 600)),
        "bomb": lambda f, i: (i / "bomb.mha").write_bytes(meta(packed="True", body=zeros(8))),
        "device": lambda f, i: (i / "device.mhd").write_bytes(meta("/dev/zero")),
    },
    "nrrd": {
        "above": lambda f, i: (outside(f), (i / "above.nhdr").write_bytes(nrrd("data file: ../secret.raw\n"))),
        "absolute": lambda f, i: (i / "absolute.nhdr").write_bytes(nrrd(f"data file: {outside(f)}\n")),
        "linked": lambda f, i: link(f, i, "linked.nhdr", "linked.raw", nrrd, "data file: "),
        "another": lambda f, i: (i / "another.nhdr").write_bytes(nrrd("data file: c000.nrrd\n")),
        "list": lambda f, i: (i / "list.nhdr").write_bytes(nrrd("data file: LIST\n../secret.raw\n")),
        "huge": lambda f, i: (i / "huge.nrrd").write_bytes(nrrd(size="60000 60000 60000", body=b"\0" * 600)),
        "negative": lambda f, i: (i / "negative.nrrd").write_bytes(nrrd(size="-6 5 -10", body=b"\0" * 600)),
        "bomb": lambda f, i: (i / "bomb.nrrd").write_bytes(nrrd(packed="gzip", body=zeros(8, gzipped=True))),
        "skip": lambda f, i: (i / "skip.nrrd").write_bytes(nrrd("byte skip: -1\n", body=b"\0" * 500)),
        "device": lambda f, i: (i / "device.nhdr").write_bytes(nrrd("data file: /dev/zero\n")),
    },
    "tiff": {
        "huge": lambda f, i: tiff(i / "huge.tif", width=2**31 - 1, rows=2**31 - 1),
        "wide": lambda f, i: tiff(i / "wide.tif", width=200_000, rows=200_000),
        "beyond": lambda f, i: tiff(i / "beyond.tif", offsets=2**31),
        "long": lambda f, i: tiff(i / "long.tif", counts=2**31),
        "entities": lambda f, i: tifffile.imwrite(
            i / "entities.tif", np.ones((9, 9), np.uint8), metadata=None,
            description='<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY a SYSTEM "file:///etc/passwd"><!ENTITY b "&a;&a;">]><OME>&b;</OME>',
        ),
        "bomb": lambda f, i: tiff(i / "bomb.tif", strip=zeros(8)),
    },
}  # fmt: skip


def site(folder: Path, kind: str) -> Path:
    images = folder / "images"
    images.mkdir()
    clean = [f"c{k:03d}" for k in range(30)]
    for person in clean:
        if kind == "tiff":
            tifffile.imwrite(images / f"{person}.tif", RNG.integers(0, 255, (9, 9), np.uint8))
        else:
            (images / f"{person}.{kind}").write_bytes((meta if kind == "mha" else nrrd)(body=good()))
    for make in HOSTILE[kind].values():
        make(folder, images)
    people = [*clean, *HOSTILE[kind]]
    write_csv(folder / "persons.csv", people, {"y": np.arange(len(people)) % 2})
    manifest = write_manifest(folder, "a", image=f'{{ path = "images", format = "{kind}" }}')
    manifest.write_text(manifest.read_text() + "[policy]\nmax_quarantined = 0.5\n")
    return manifest


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_check_sets_them_aside_within_its_memory(tmp_path: Path, kind: str) -> None:
    manifest = site(tmp_path, kind)
    (tmp_path / "study.toml").write_text(STUDY.format(size="9, 9" if kind == "tiff" else "6, 5, 10"))
    words = [str(Path(sys.executable).with_name("fedml-site")), "check", "study.toml"]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 * GIB, 6 * GIB)),
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert "Traceback" not in told
    assert "30 persons" in told
    aside = {entry["person"]: entry["reason"] for entry in read(read_site(manifest).state)}
    assert set(aside) == set(HOSTILE[kind]), "all of them and nobody else"
    assert set(aside.values()) <= {"unreadable", "too-large", "wrong-length", "truncated"}
    kept = b"".join(path.read_bytes() for path in (tmp_path / ".fedml").rglob("*") if path.is_file())
    passwords = Path("/etc/passwd").read_bytes().splitlines()[0]
    for outside_bytes in (SECRET.tobytes()[:40], SECRET[:8].astype("<f2").tobytes(), SECRET[:8].astype("<f4").tobytes(), passwords):
        assert outside_bytes not in kept
        assert outside_bytes.decode("latin-1") not in told
