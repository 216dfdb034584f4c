"""A child process ends with its parent, however the parent ends: no orphan keeps a site's identity or a port."""

from __future__ import annotations

import os
import signal
import threading
import time

_LOOK_SECONDS, _GRACE_SECONDS = 0.5, 10.0


def end_with_parent() -> None:
    """Watches, in a thread, whether this process gets another parent; then it is told to end (SIGTERM), and ends in any case after 10 s."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
