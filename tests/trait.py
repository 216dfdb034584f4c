"""The planted trait's persons in one place, by other means than the project's own, and observed runs over its sites.

pool = read_pool(folder)                         # bed-reader and pandas; components by a dense eigendecomposition
ran = run(study_of("height"), folder, out)       # ran.table, ran.event, and ran.steps: what was asked of each site and what left it
ran = run(study, folder, out, gates(study, folder))
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from flwr.app import Context, Message, RecordDict
from scipy.stats import chi2

from fedml.clients.gate import approvals
from fedml.clients.gate.gate import Gate
from fedml.clients.service import prepare_state
from fedml.clients.site.manifest import find_sites
from fedml.clients.work.client import app as client_app
from fedml.experiments.prepare import prepare
from fedml.experiments.runs.association import read_table
from fedml.flower.grid import InProcessGrid
from fedml.runs.log import read_events
from fedml.strategies.agreement.agree import agree
from fedml.strategies.agreement.agreement import Agreement
from fedml.strategies.server import app as server_app
from fedml.study.read import read_study
from fedml.study.study import Study, for_roster
from fedml.wire.records import AGREEMENT, ANALYSIS, CONFIG, FLIPS, PANEL, Phase, unpack
from tests.command import STUDIES
from tests.conftest import DATA

SITES = ("hapmap3", "kg1")


def prepared(folder: Path) -> Path:
    """The two studies as two sites, with the planted trait, in ``folder``/sites; the test is skipped where the public data are absent."""
    if not DATA.is_dir():
        pytest.skip(f"the public data are not at {DATA}")
    prepare("trait", folder / "sites", data=DATA, say=lambda _: None)
    return folder / "sites"


class Pool(NamedTuple):
    """All persons in one place, read by bed-reader: ``dosage`` (persons, variants) of ``alt``, nan where missing; the table of persons."""

    rsid: list[str]
    alt: list[str]
    ref: list[str]
    contig: list[str]
    position: list[int]
    dosage: Any
    persons: pd.DataFrame

    def frequency(self, rows: Any = slice(None)) -> Any:
        return np.nanmean(self.dosage[rows], axis=0) / 2

    def components(self, used: Any, k: int) -> Any:
        """(persons, k): eigenvectors of the relationship matrix of the variants ``used``."""
        z = self.dosage[:, used]
        f = np.nanmean(z, axis=0) / 2
        z = np.nan_to_num((z - 2 * f) / np.sqrt(2 * f * (1 - f)))
        return np.linalg.eigh(z @ z.T)[1][:, ::-1][:, :k]

    def genotype(self, j: int, effect_allele: str, rows: Any = slice(None)) -> Any:
        """(persons,) copies of ``effect_allele``, the mean where missing."""
        g = self.dosage[rows, j]
        g = np.where(np.isnan(g), np.nanmean(g), g)
        return g if effect_allele == self.alt[j] else 2 - g

    def design(self, components: Any, rows: Any = slice(None)) -> Any:
        age, sex = (self.persons[name].to_numpy(float)[rows] for name in ("age", "sex"))
        return np.column_stack([np.ones(len(age)), age, sex, components[rows]])


def read_pool(folder: Path) -> Pool:
    from bed_reader import open_bed

    first: dict[str, int] = {}
    parts, tables = [], []
    for site in SITES:
        bed = open_bed(folder / site / "genotypes.bed")
        persons = pd.read_csv(folder / site / "persons.csv", index_col="id")
        rows = pd.Index(bed.iid).get_indexer(persons.index)
        dosage = bed.read(index=np.s_[rows, :], dtype="float64")
        name, a1, a2 = bed.sid.tolist(), bed.allele_1.tolist(), bed.allele_2.tolist()
        if not first:
            first = {rsid: i for i, rsid in enumerate(name)}
            keys = (name, a1, a2, bed.chromosome.tolist(), bed.bp_position.tolist())
        order = np.argsort([first[rsid] for rsid in name])
        dosage, a1, a2 = dosage[:, order], [a1[i] for i in order], [a2[i] for i in order]
        assert all({x, y} == {u, v} for x, y, u, v in zip(a1, a2, keys[1], keys[2], strict=True))
        parts.append(np.where(np.array(a1) == np.array(keys[1]), dosage, 2 - dosage))
        tables.append(persons.join(pd.read_csv(folder / site / "clinical.csv", index_col="id")).assign(site=site))
    return Pool(*keys, np.concatenate(parts), pd.concat(tables))


class Step(NamedTuple):
    """One step at one site: what was asked of which panel, and what left."""

    site: str
    phase: Phase
    rsid: list[str]
    effect: list[str]
    turned: Any
    given: dict[str, Any]
    reported: dict[str, Any]


def observed(study: Study, folder: Path, out: Path, handlers: Sequence[Callable[[Message, Context], Message]] = ()) -> list[Step]:
    """A run over the sites in ``folder`` (through ``handlers``, if there are any); every step's request and reply."""
    found, _ = find_sites(folder, study.federation.sites)
    roster, steps = list(found), list[Step]()

    def answer(message: Message, context: Context) -> Message:
        content, place = message.content, context.node_id - 1
        phase = Phase(str(content.config_records[CONFIG]["phase"]))
        asked = {k: unpack(content.array_records[k]) for k in (ANALYSIS, AGREEMENT) if k in content}
        reply = (handlers[place] if handlers else client_app)(message, context)
        if ANALYSIS in asked and not reply.has_error():
            lines = [line.split("\t") for line in asked[AGREEMENT][PANEL].tobytes().decode().splitlines()]
            turned = asked[AGREEMENT][FLIPS].reshape(len(roster), -1)[place]
            given = asked[ANALYSIS] if phase is Phase.NULL else {}
            reported = unpack(reply.content.array_records[ANALYSIS])
            steps.append(Step(roster[place], phase, [x[2] for x in lines], [x[4] for x in lines], turned, given, reported))
        return reply

    out.mkdir(parents=True)
    config: dict[str, Any] = {"study": study.canonical, "run": str(out), "job": "gwas"}
    grid = InProcessGrid(answer, [{"manifest": str(site.file)} for site in found.values()], config)
    server_app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config))
    return steps


def copy_site(site: Path, folder: Path, name: str, **policy: int) -> Path:
    """``site`` under another name and policy, its genotypes by links."""
    folder.mkdir(parents=True)
    for file in site.glob("genotypes.*"):
        (folder / file.name).symlink_to(file)
    for table in ("persons.csv", "clinical.csv"):
        shutil.copyfile(site / table, folder / table)
    manifest = (site / "site.toml").read_text().replace(f'name = "{site.name}"', f'name = "{name}"')
    lines = [line for line in manifest.splitlines() if not policy or not line.startswith("min_count")]
    (folder / "site.toml").write_text("\n".join(lines + [f"{key} = {value}" for key, value in policy.items()]) + "\n")
    return folder


def study_of(name: str, roster: Sequence[str] = SITES, **changes: Any) -> Study:
    """``height`` or ``tall`` for this roster, with every A/T and C/G variant; ``changes`` as ``section__key=value``."""
    changes["cohort__variants"] = {"match": "rsid", "max_palindromic_maf": 0.5} | changes.get("cohort__variants", {})
    study = read_study(STUDIES / f"{name}.toml", overrides={key.replace("__", "."): value for key, value in changes.items()})
    return for_roster(study, roster)


class Ran(NamedTuple):
    folder: Path
    table: pd.DataFrame
    steps: list[Step]

    @property
    def event(self) -> dict[str, Any]:
        """What the record says of the scan."""
        return next(e for e in read_events(self.folder)[0] if e["event"] == "gwas")


def run(study: Study, folder: Path, out: Path, handlers: Sequence[Any] = ()) -> Ran:
    steps = observed(study, folder, out, handlers)
    return Ran(out, read_table(out).set_index("rsid"), steps)


def chosen(table: pd.DataFrame, count: int, top: int = 10) -> list[str]:
    """Some variants drawn, and the strongest."""
    drawn = np.random.default_rng(4).choice(table.index, count, replace=False).tolist()
    return drawn + table.neg_log10_p.nlargest(top).index.tolist()


def worst(table: pd.DataFrame, reference: Mapping[str, tuple[float, float, float]]) -> tuple[float, float, float]:
    """Largest relative differences of beta, standard error and p value."""
    ours = table.loc[list(reference), ["beta", "standard_error", "p_value"]].astype(float).to_numpy()
    return tuple(np.abs(ours / np.array(list(reference.values())) - 1).max(0))  # type: ignore[return-value]


def firth(x: Any, y: Any) -> tuple[float, float, float]:
    """Last coefficient and its standard error where Firth's penalised likelihood is largest, and p of the likelihood ratio to the largest
    without that coefficient, with the same penalty (Heinze and Schemper 2002)."""
    beta, error, best = _largest(x, y, x.shape[1])
    *_, held = _largest(x, y, x.shape[1] - 1)
    return beta, error, float(chi2.sf(2 * (best - held), 1))


def _largest(x: Any, y: Any, free: int) -> tuple[float, float, float]:
    """Last coefficient, its standard error, and the penalised log likelihood; the coefficients from ``free`` on are 0."""
    beta = np.zeros(x.shape[1])
    for _ in range(200):
        mu = 1 / (1 + np.exp(-x @ beta))
        w = mu * (1 - mu)
        information = (x.T * w) @ x
        cover = np.linalg.inv(information)
        leverage = w * np.einsum("ij,jk,ik->i", x, cover, x)
        step = np.zeros(x.shape[1])
        step[:free] = np.linalg.solve(information[:free, :free], (x.T @ (y - mu + leverage * (0.5 - mu)))[:free])
        beta += step / max(1.0, np.abs(step).max() / 2)
        if np.abs(step / np.sqrt(np.diag(cover))).max() < 1e-10:
            eta = x @ beta
            likelihood = float((y * eta - np.logaddexp(0, eta)).sum() + np.linalg.slogdet(information)[1] / 2)
            return beta[-1], float(np.sqrt(cover[-1, -1])), likelihood
    raise AssertionError("the reference did not converge")


def gates(study: Study, folder: Path, *, approved: bool = True, run_id: int = 1) -> list[Callable[[Message, Context], Message]]:
    """A gate in front of each site of the roster."""
    out: list[Callable[[Message, Context], Message]] = []
    for site in find_sites(folder, study.federation.sites)[0].values():
        if approved:
            approvals.approve(prepare_state(site), study, "Dr. Test")
        gate = Gate(site, prepare_state(site))

        def handle(message: Message, context: Context, gate: Gate = gate) -> Message:
            message.metadata.__dict__["_run_id"] = run_id
            return gate.handle(message, context)

        out.append(handle)
    return out


def agreed(study: Study, folder: Path, run_id: int) -> tuple[InProcessGrid, Agreement]:
    """The sites behind their gates, and what they agree on."""
    handlers = gates(study, folder, run_id=run_id)
    grid = InProcessGrid(lambda message, context: handlers[context.node_id - 1](message, context), [{} for _ in handlers])
    return grid, agree(study, grid, train=False)
