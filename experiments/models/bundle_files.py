"""The files of a MONAI bundle, a folder or a zip file, read as data: nothing of it is run.

    bundle = read_bundle(Path("spleen.zip"))
    bundle.network            # {"_target_": "UNet", "channels": [16, 32], ..}: literals only, references (@name) filled in
    bundle.weights            # name -> array, by torch.load(weights_only=True)

A bundle's configuration may hold Python expressions (``$...``), which MONAI evaluates. Here an expression is text that is refused where a
value is needed.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from fedml.errors import InputError
from fedml.networks.weights import arrays_of

CONFIGS = ("configs/inference.json", "configs/evaluate.json", "configs/train.json")
WEIGHTS = ("models/model.pt", "models/model.safetensors")
METADATA = "configs/metadata.json"
_NETWORK = ("network_def", "network", "net")
_LARGEST = {".json": 4 * 2**20, ".pt": 2**31, ".safetensors": 2**31}  # bytes
_DEEPEST = 20  # references within references


@dataclass(frozen=True, eq=False)
class Bundle:
    """``name`` and ``version`` of its metadata; ``sha256`` of its file of weights; ``config``: as it is written."""

    path: Path
    name: str
    version: str
    sha256: str
    network: dict[str, Any]
    config: Mapping[str, Any]
    metadata: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]

    def value(self, given: Any) -> Any:
        """``given`` with references to other parts of the configuration filled in.

        Raises:
            InputError: an expression, a macro or a reference to nothing.
        """
        return _literal(given, self.config, self.path)


def read_bundle(path: Path, sha256: str = "") -> Bundle:
    """Reads a bundle.

    Args:
        sha256: that its file of weights must have; "": any.

    Raises:
        InputError: a file is missing, too large, not in its format, or another one; the network is not described by values.
    """
    files = _files(path)
    at = next((name for name in CONFIGS if name in files), None)
    if at is None:
        raise InputError(f"{path}: has none of {', '.join(CONFIGS)}; a bundle whose configuration is YAML must be written as JSON first.")
    config, metadata = _json(path, at, files), _json(path, METADATA, files) if METADATA in files else {}
    weights_at = next((name for name in WEIGHTS if name in files), None)
    if weights_at is None:
        raise InputError(f"{path}: has none of {', '.join(WEIGHTS)}; TorchScript (.ts) is a program, which is not run.")
    data = files[weights_at]
    found = hashlib.sha256(data).hexdigest()
    if sha256 and found != sha256.lower():
        raise InputError(f"{path}: {weights_at} has the SHA-256 {found}, not {sha256}; get the bundle from its source again.")
    key = next((name for name in _NETWORK if isinstance(config.get(name), dict)), None)
    if key is None:
        raise InputError(f"{path}: {at} has no network_def with a _target_; it is needed to build the network.")
    network = _literal(config[key], config, path)
    name, version = (str(metadata.get(word) or "")[:200] for word in ("name", "version"))
    return Bundle(
        path, name or path.stem, version, found, network, config, metadata, arrays_of(data, f"{path}: {weights_at}", ("module.",))
    )


def _files(path: Path) -> dict[str, bytes]:
    wanted = (*CONFIGS, METADATA, *WEIGHTS)
    try:
        if path.is_dir():
            return {name: _whole(path / name) for name in wanted if (path / name).is_file()}
        with zipfile.ZipFile(path) as archive:
            out: dict[str, bytes] = {}
            for item in archive.infolist():
                name = "/".join(PurePosixPath(item.filename).parts[-2:])  # the bundle is the archive, or its only folder
                if name in wanted and len(PurePosixPath(item.filename).parts) <= 3:
                    if name in out:
                        raise InputError(f"{path}: has {name} twice; give a bundle by itself.")
                    if item.file_size > _LARGEST[Path(name).suffix]:
                        raise InputError(f"{path}: {name} is larger than {_LARGEST[Path(name).suffix]:,} bytes.")
                    with archive.open(item) as file:
                        out[name] = file.read(_LARGEST[Path(name).suffix] + 1)
            return out
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path}: cannot be read as a folder or zip file of a bundle ({type(error).__name__}).") from error


def _whole(path: Path) -> bytes:
    if path.stat().st_size > _LARGEST[path.suffix]:
        raise InputError(f"{path}: is larger than {_LARGEST[path.suffix]:,} bytes.")
    return path.read_bytes()


def _json(path: Path, name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        found = json.loads(files[name])
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {name} is not JSON.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: {name} is not a JSON object.")
    return found


def _literal(value: Any, config: Mapping[str, Any], path: Path, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise InputError(f"{path}: its references are nested too deeply, or in a circle.")
    if isinstance(value, dict):
        return {str(k): _literal(v, config, path, depth + 1) for k, v in value.items()}
    if isinstance(value, list):
        return [_literal(v, config, path, depth + 1) for v in value]
    if not isinstance(value, str) or value[:1] not in ("$", "@", "%"):
        return value
    if value[0] != "@":
        kind = "an expression, which is never run" if value[0] == "$" else "a macro"
        raise InputError(f"{path}: {value[:80]!r} is {kind}; write its value into the configuration.")
    found: Any = config
    for part in value[1:].replace("::", "#").split("#"):
        inside = found.get(part) if isinstance(found, dict) else None
        if isinstance(found, list) and part.isdigit() and int(part) < len(found):
            inside = found[int(part)]
        if inside is None:
            raise InputError(f"{path}: {value[:80]!r} refers to nothing in the configuration.")
        found = inside
    return _literal(found, config, path, depth + 1)
