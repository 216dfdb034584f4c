"""The ServerApp: reads the study from the run's configuration, runs it, leaves the record in the run's folder.

The same app serves every engine: in this process, in Flower's simulation, at a SuperLink.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedml.errors import InputError, RunError
from fedml.flower.grid import ask_for_parts_sooner
from fedml.runlog import emit
from fedml.study import parse_study
from strategies.rounds import run_study

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run configuration: ``study`` (canonical JSON) and ``run`` (the run's folder)."""
    run = Path(str(context.run_config["run"]))
    ask_for_parts_sooner()
    try:
        run_study(parse_study(str(context.run_config["study"])), grid, run)
    except (RunError, InputError) as error:
        emit(run, "end", status="failed", reason=str(error))
        raise
    except Exception as error:
        emit(run, "end", status="failed", reason=f"{type(error).__name__}: {error}")
        raise
    emit(run, "end", status="finished", reason="")
