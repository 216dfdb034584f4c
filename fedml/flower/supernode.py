"""``flower-supernode`` with a shorter nap: ``python -m fedml.flower.supernode ARGUMENTS``.

The SuperNode of flwr 1.41 sleeps 3 s whenever the SuperLink has nothing for it, which is most of a round's time when sites are warm.
Nothing else of it is changed; its arguments are its own.
"""

from __future__ import annotations

import time
from types import SimpleNamespace

from flwr.supernode import start_client_internal
from flwr.supernode.cli.flower_supernode import flower_supernode

import fedml  # noqa: F401 - switches telemetry off

NAP_SECONDS = 0.2


def main() -> None:
    """Runs Flower's command with its module's ``time.sleep`` bounded."""
    # One SuperNode asks its SuperLink five times a second; each question is a small request on an open connection.
    short = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: time.sleep(min(seconds, NAP_SECONDS))})
    vars(start_client_internal)["time"] = short
    flower_supernode()


if __name__ == "__main__":
    main()
