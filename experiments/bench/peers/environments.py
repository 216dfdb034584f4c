"""Makes the peers' environments, DIR/pfl, DIR/flower and DIR/nvflare, with the versions of torch and numpy that this one has.

    python -m fedml.experiments.bench.peers.environments DIR [--only pfl,flower]

An environment that is complete stays as it is. One that cannot be installed is reported and skipped; exit status 1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PEERS = {
    "pfl": ("pfl==0.6.0",),
    "flower": ("flwr[simulation]==1.42.0", f"ray=={importlib.metadata.version('ray')}"),
    "nvflare": ("nvflare==2.9.0",),
}
DISTRIBUTION = {"pfl": "pfl", "flower": "flwr", "nvflare": "nvflare"}


def python_of(folder: Path, peer: str) -> Path:
    """The interpreter of ``peer`` below ``folder``."""
    return folder / peer / "bin" / "python"


def complete(folder: Path, peer: str) -> bool:
    """Was the environment installed to its end?"""
    return (folder / peer / ".installed").exists()


def _call(command: Sequence[str]) -> None:
    subprocess.run(command, check=True)


def make(folder: Path, peer: str) -> bool:
    """Installs ``peer``; False, with the reason on standard error, if pip cannot."""
    if complete(folder, peer):
        print(f"{folder / peer}: complete")
        return True
    pip = [str(python_of(folder, peer)), "-P", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # "+cpu" and the like name the index of a build, not a version that pip finds elsewhere.
    torch = importlib.metadata.version("torch").partition("+")[0]
    try:
        _call([sys.executable, "-P", "-m", "venv", str(folder / peer)])
        _call([*pip, f"torch=={torch}", f"numpy=={importlib.metadata.version('numpy')}"])
        _call([*pip, *PEERS[peer], f"torch=={torch}"])
    except subprocess.CalledProcessError as error:
        print(f"{peer}: {' '.join(map(str, error.cmd))} ended with {error.returncode}; the benchmark skips it.", file=sys.stderr)
        return False
    (folder / peer / ".installed").touch()
    print(f"{folder / peer}: installed")
    return True


def main() -> None:
    """Reads the arguments and installs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default=",".join(PEERS), help="some of them, separated by commas")
    given = parser.parse_args()
    chosen = given.only.split(",")
    if unknown := [peer for peer in chosen if peer not in PEERS]:
        parser.error(f"--only {','.join(unknown)}: the peers are {', '.join(PEERS)}.")
    made = [make(given.folder.resolve(), peer) for peer in chosen]  # all, even if one of them cannot be made
    sys.exit(0 if all(made) else 1)


if __name__ == "__main__":
    main()
