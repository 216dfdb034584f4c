"""Ground floor: the study, a site's cohort, models, learning, records on the wire, tracking.

Nothing here imports ``strategies``, ``clients`` or ``experiments``. Importing ``fedml`` imports no library:
torch, monai and mlflow take seconds and are imported where they are used.

For notebooks and scripts: ``fedml.Study``, ``run``, ``open_run``, ``compare``, ``sweep``, ``client`` (``fedml.experiments.api``), loaded
when they are used.
"""

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# No telemetry from a hospital. Set before flwr, ray or mlflow can be imported.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # Arrow's own keeps 10 MB more of each process

# Processes of one site, and of one centre, talk to each other on this machine. A hospital's HTTP_PROXY must not receive these requests.
# Both spellings get the hosts of both, because libraries read the lower case first and the other only if it is not set.
_HOSTS = ",".join(filter(None, (os.environ.get("no_proxy"), os.environ.get("NO_PROXY"), "localhost,127.0.0.1,::1")))
os.environ["no_proxy"] = os.environ["NO_PROXY"] = _HOSTS

_API = ("Study", "client", "compare", "open_run", "run", "sweep")


def __getattr__(name: str) -> Any:
    if name in _API:
        return getattr(import_module("fedml.experiments.api"), name)
    raise AttributeError(f"module 'fedml' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])
