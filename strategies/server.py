"""The ServerApp: reads the study from the run's configuration, runs it, and writes the record to the run's folder.

The same app serves every engine: in this process, in Flower's simulation, at a SuperLink.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedml.errors import sentence_of
from fedml.flower.grid import ask_for_parts_sooner, wants_packing
from fedml.flower.parent import working
from fedml.runs.checkpoints import CHECKPOINTS, ORIGIN
from fedml.runs.events import End
from fedml.runs.log import emit, write_whole
from fedml.strategies.continued import Continued
from fedml.strategies.rounds import preflight, run_study
from fedml.strategies.watched import watched
from fedml.study.sources import FOLDER, provide_folder
from fedml.study.study import Study, shared_study

app = ServerApp()


def _associate(study: Study, grid: Grid, run: Path) -> object:
    from fedml.strategies.gwas.run import associate  # imported here, because its libraries load slowly and only this job needs them

    return associate(study, grid, run)


def _frequencies(study: Study, grid: Grid, run: Path) -> object:
    from fedml.strategies.frequencies.run import frequencies

    return frequencies(study, grid, run)


def _test_genes(study: Study, grid: Grid, run: Path) -> object:
    from fedml.strategies.gwas.genes import test_genes

    return test_genes(study, grid, run)


def _outcomes(name: str, study: Study, grid: Grid, run: Path) -> object:
    from fedml.strategies.outcomes.jobs import ANALYSES
    from fedml.strategies.outcomes.work import begin

    return ANALYSES[name](begin(study, grid, run))


def _train(study: Study, grid: Grid, run: Path) -> object:
    """A training from its beginning. A later ``_go_on`` needs Flower's number of this run, by which sites know it."""
    (run / CHECKPOINTS).mkdir(exist_ok=True, mode=0o700)
    write_whole(run / CHECKPOINTS / ORIGIN, str(grid.run.run_id).encode())
    return run_study(study, grid, run)


def _go_on(study: Study, grid: Grid, run: Path) -> object:
    """A training that stopped goes on, at the sites as the run with which it began."""
    if not (run / CHECKPOINTS / ORIGIN).exists():  # it stopped before it had asked any site
        return _train(study, grid, run)
    return run_study(study, Continued(grid, (run / CHECKPOINTS / ORIGIN).read_text()), run, resumed=True)


# Job -> function: train a model, test every variant, test genes, count alleles, analyse outcomes, or only check that the
# sites' data are compatible.
JOBS: dict[str, Callable[[Study, Grid, Path], object]] = {
    "train": _train,
    "resume": _go_on,
    "gwas": _associate,
    "genes": _test_genes,
    "frequencies": _frequencies,
    **{name: partial(_outcomes, name) for name in ("survival", "glm", "describe")},
    "preflight": preflight,
}


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run configuration: ``study`` (canonical JSON), ``run`` (the run's folder) and ``job`` (default: ``train``)."""
    run = Path(str(context.run_config["run"]))
    provide_folder(run / FOLDER)
    if wants_packing(grid):  # a SuperLink's; its module takes a second to import
        ask_for_parts_sooner()
    with working(run):
        try:
            study = shared_study(str(context.run_config["study"]))
            with watched(run, grid, study) as seen:
                JOBS[str(context.run_config.get("job", "train"))](study, seen, run)
        except Exception as error:
            with suppress(OSError):  # a full disk is said by who started the run
                emit(run, End(status="failed", reason=sentence_of(error)))
            raise
        emit(run, End(status="finished", reason=""))
