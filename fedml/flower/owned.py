"""``flower-superlink`` that ends, with all that it started, when its parent ends: ``python -P -m fedml.flower.owned ARGUMENTS``. A
simulation that is killed leaves no process behind."""

from __future__ import annotations

import sys

from flwr.superlink.cli import flower_superlink

import fedml  # noqa: F401 - switches telemetry off
from fedml.flower.parent import end_with_parent


def main() -> None:
    """Runs Flower's command."""
    end_with_parent(all_children=True)
    sys.argv[0] = "flower-superlink"
    flower_superlink()


if __name__ == "__main__":
    main()
