"""A distribution that a hospital's pip installs: a wheel written by hand, and its folder as pip leaves it."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

NETS = """
from torch import nn

from .parts import layers as pieces
from my_pkg.parts.layers import last
import my_pkg.parts.layers as same

assert pieces is same

try:
    from . import plots  # needs what no site has
except ImportError:
    plots = None


def linear(columns, outputs):
    return last(columns, outputs)
"""
FILES = {
    "my_pkg/__init__.py": "VERSION = '1.2.0'\n",
    "my_pkg/nets.py": NETS,
    "my_pkg/plots.py": "import a_library_that_no_site_has\n",
    "my_pkg/parts/__init__.py": "from .. import VERSION\n",
    "my_pkg/parts/layers.py": "import os\nfrom torch import nn\n\n\ndef last(columns, outputs):\n    return nn.Linear(columns, outputs)\n",
    "my_pkg/py.typed": "",
}


def wheel(folder: Path, files: Mapping[str, str | bytes], name: str = "my_pkg", version: str = "1.2.0", entry: str = "") -> Path:
    """Writes the wheel; ``entry``: the text of entry_points.txt."""
    about = f"{name}-{version}.dist-info"
    every = {path: data.encode() if isinstance(data, str) else data for path, data in files.items()}
    every[f"{about}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    every[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    if entry:
        every[f"{about}/entry_points.txt"] = entry.encode()
    lines = [f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in every.items()]
    out = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(out, "w") as archive:
        for path, data in every.items():
            archive.writestr(path, data)
        archive.writestr(f"{about}/RECORD", "".join([*lines, f"{about}/RECORD,,\n"]))
    return out


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def unpacked(folder: Path, files: Mapping[str, str | bytes], **about: str) -> Path:
    """The folder as pip makes it of the wheel, without what pip adds."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = wheel(folder, files, **about)
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder)
    packed.unlink()
    return folder


def installed(folder: Path, files: Mapping[str, str | bytes], **about: str) -> Path:
    """The folder into which pip installs the wheel, to be put on the path."""
    (folder / "wheels").mkdir(parents=True)
    packed = wheel(folder / "wheels", files, **about)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(folder / "site"), str(packed)], check=True, capture_output=True, timeout=300)
    return folder / "site"
