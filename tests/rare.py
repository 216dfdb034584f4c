"""Sites with rare variants in genes, and tests of genes on the pooled persons by slow, dense computations of another kind.

sites = write_rare(folder, Drawn(persons=(200, 300), policy="[policy]\nmin_count = 1\n"))
table = run_genes(study, folder, out)            # genes.tsv.gz of the local engine
reference(sites, study, mask)                    # gene -> (burden p, SKAT p, SKAT-O p, ...)
"""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from flwr.app import Context, Message, RecordDict
from scipy import integrate, optimize, stats

from fedml.clients.site.manifest import find_sites
from fedml.clients.work.client import app as client_app
from fedml.flower.grid import InProcessGrid
from fedml.runs.log import read_log
from fedml.strategies.server import app as server_app
from fedml.study.annotation import provide, write_annotation
from fedml.study.study import Study, parse_study, validate
from tests.conftest import write_bed, write_csv

RHO = (0.0, 0.01, 0.04, 0.09, 0.25, 0.5, 1.0)


class Drawn(NamedTuple):
    """How sites are drawn: ``share`` of cases (None: a number), ``genes`` of ``variants`` each, every third a loss of function."""

    persons: tuple[int, ...] = (200, 300, 250)
    genes: int = 6
    variants: int = 12
    share: float | None = None
    seed: int = 3
    policy: str = ""
    linked: float = 0.0  # share of a variant's carriers who carry the next one too
    missing: float = 0.0
    low: float = 0.0005
    high: float = 0.009
    effect: float = 0.0  # of an allele of the first gene


class Sites(NamedTuple):
    """All persons together: ``dosage`` (persons, variants), -1 where missing, ``y``, ``x`` (age, sex), the ``site`` of each; the folder."""

    folder: Path
    dosage: Any
    y: Any
    x: Any
    site: Any
    gene: Any
    loss: Any

    @property
    def annotation(self) -> Path:
        return self.folder / "annotation.tsv"


def write_rare(folder: Path, drawn: Drawn = Drawn()) -> Sites:
    """Writes the sites into ``folder``/sites, and ``folder``/annotation.tsv."""
    random = np.random.default_rng(drawn.seed)
    count = drawn.genes * drawn.variants
    frequency = np.exp(random.uniform(math.log(drawn.low), math.log(drawn.high), count))
    keys = [("1", 1000 + 100 * at, f"rs{at + 1}", "A", "G") for at in range(count)]
    gene, loss = np.repeat(np.arange(drawn.genes), drawn.variants), np.arange(count) % 3 == 0
    parts = []
    for number, persons in enumerate(drawn.persons):
        dosage = random.binomial(2, frequency, (persons, count)).astype(np.int8)
        for at in range(1, count):
            if drawn.linked and gene[at] == gene[at - 1]:
                also = (dosage[:, at - 1] > 0) & (random.random(persons) < drawn.linked)
                dosage[also, at] = np.maximum(dosage[also, at], 1)
        age, sex = random.normal(55, 10, persons).round(1), random.integers(0, 2, persons)
        line = 0.03 * (age - 55) + 0.4 * sex + 0.5 * number + drawn.effect * dosage[:, gene == 0].sum(1)
        if drawn.share is None:
            y = line + random.normal(size=persons)
        else:
            y = (line + random.logistic(size=persons) + math.log(drawn.share / (1 - drawn.share)) - 0.5 > 0).astype(float)
        dosage[random.random(dosage.shape) < drawn.missing] = -1
        name = f"s{number}"
        ids, place = [f"{name}-{at}" for at in range(persons)], folder / "sites" / name
        place.mkdir(parents=True)
        write_bed(place / "genotypes.bed", ids, keys, dosage)
        write_csv(place / "persons.csv", ids, {"y": y if drawn.share is None else y.astype(int)})
        write_csv(place / "clinical.csv", ids, {"age": age, "sex": sex})
        data = 'persons = "persons.csv"\nvariants = { path = "genotypes.bed", build = "GRCh38" }\nclinical = { path = "clinical.csv" }'
        (place / "site.toml").write_text(f'[site]\nname = "{name}"\n[data]\n{data}\n{drawn.policy}')
        parts.append((dosage, y, np.column_stack([age, sex]), np.full(persons, number)))
    rows = [f"rs{at + 1}\tG{gene[at]}\t{'stop_gained' if loss[at] else 'missense_variant'}" for at in range(count)]
    (folder / "annotation.tsv").write_text("\n".join(["variant\tgene\tconsequence", *rows]) + "\n")
    return Sites(folder, *(np.concatenate(part) for part in zip(*parts, strict=True)), gene, loss)  # type: ignore[arg-type]


def study_of(sites: Sites, *, task: str = "regression", policy: int = 1, **genes: Any) -> Study:
    """Tests of genes adjusted for age and sex; ``policy``: min_count of the study."""
    names = sorted({f"s{n}" for n in sites.site.tolist()}, key=lambda name: int(name[1:]))
    plan = {
        "study": {"name": "rare", "seed": 1},
        "cohort": {"inputs": ["variants", "clinical"], "target": "y", "clinical": {"columns": ["age", "sex"]}},
        "model": {"task": task},
        "policy": {"min_count": policy},
        "gwas": {"components": 0, "covariates": ["age", "sex"],
                 "genes": {"sha256": provide(sites.annotation), "min_alleles": 1, **genes}},
        "federation": {"sites": names},
    }  # fmt: skip
    return parse_study(validate(Study, plan, "rare").canonical)


def run_genes(
    study: Study, folder: Path, out: Path, handlers: Sequence[Callable[[Message, Context], Message]] = ()
) -> pd.DataFrame:  # fmt: skip
    """The table of a run of the local engine over ``folder``/sites, through ``handlers`` if there are any."""
    found, _ = find_sites(folder / "sites", study.federation.sites)

    def answer(message: Message, context: Context) -> Message:
        return (handlers[context.node_id - 1] if handlers else client_app)(message, context)

    out.mkdir(parents=True)
    write_annotation(study, out)
    config: dict[str, Any] = {"study": study.canonical, "run": str(out), "job": "genes"}
    grid = InProcessGrid(answer, [{"manifest": str(site.file)} for site in found.values()], config)
    server_app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config))
    return read_genes(out)


def read_genes(run: Path) -> pd.DataFrame:
    text = gzip.decompress((run / "genes.tsv.gz").read_bytes()).decode()
    return pd.read_csv(io.StringIO(text), sep="\t").set_index(["gene", "mask"])


def event_of(run: Path) -> Any:
    return next(e for e in read_log(run)[0] if e.kind == "genes")


class Columns(NamedTuple):
    """What pooled tests of a gene use: columns (persons, columns), their frequencies and weights."""

    g: Any
    frequency: Any
    weight: Any


def pooled_columns(sites: Sites, gene: int, *, plof: bool, collapse: int = 10, max_maf: float = 0.01, beta: bool = True) -> Columns:
    """The columns of a gene from all persons' genotypes: rare variants alone, the rarest together, losses of function apart."""
    g = np.maximum(sites.dosage, 0).astype(float)
    alt, called = g.sum(0), 2 * (sites.dosage >= 0).sum(0)
    own = (sites.gene == gene) & (alt > 0) & (alt <= max_maf * called)
    columns = []
    for kind in (True,) if plof else (True, False):
        here = own & (sites.loss == kind)
        columns += [g[:, at] for at in np.flatnonzero(here & (alt > collapse))]
        if (few := here & (alt <= collapse)).any():
            columns.append(g[:, few].sum(1))
    matrix = np.column_stack(columns)
    frequency = matrix.mean(0) / 2
    return Columns(matrix, frequency, stats.beta.pdf(frequency, 1, 25) if beta else np.ones(matrix.shape[1]))


class Null(NamedTuple):
    """Residuals (persons,), weights (persons,) and X (persons, k) of the model without variants; the residual variance."""

    residual: Any
    weight: Any
    x: Any
    variance: float


def pooled_null(sites: Sites, *, binary: bool, by_site: bool) -> Null:
    """By statsmodels, on all persons."""
    import statsmodels.api as sm

    own = [(sites.site == n).astype(float) for n in np.unique(sites.site)] if by_site else [np.ones(len(sites.y))]
    x = np.column_stack([*own, sites.x])
    if binary:
        fit = sm.GLM(sites.y, x, family=sm.families.Binomial()).fit(tol=1e-14, maxiter=100)
        p = fit.fittedvalues
        return Null(sites.y - p, p * (1 - p), x, 1.0)
    fit = sm.OLS(sites.y, x).fit()
    return Null(fit.resid, np.ones(len(sites.y)), x, float(fit.scale))


def moments(columns: Columns, null: Null) -> tuple[Any, Any]:
    """Scores and their covariance from the projection matrix over persons: P = W - W X (X'WX)^-1 X'W, written out."""
    w = np.diag(null.weight)
    p = w - w @ null.x @ np.linalg.solve(null.x.T @ w @ null.x, null.x.T @ w)
    return columns.g.T @ null.residual, columns.g.T @ p @ columns.g * null.variance


def mixture_sf(q: Any, lambdas: Any) -> Any:
    """P(sum of lambda chi-squares > q) for each q: Imhof's integral (1961) by Simpson's rule on a fixed fine grid; for one or two lambdas
    from the chi-square distribution itself."""
    q, lambdas = np.atleast_1d(np.asarray(q, float)) / lambdas[0], np.asarray(lambdas) / lambdas[0]
    scale = float(lambdas.max())
    if len(lambdas) == 1:
        return stats.chi2.sf(q, 1)
    if len(lambdas) == 2:
        z = np.linspace(0, 1, 20_001)
        top = np.sqrt(np.maximum(q, 0) / lambdas[0])[:, None]
        at = top * np.sin(z * np.pi / 2)
        inside = stats.chi2.sf((q[:, None] - lambdas[0] * at**2) / lambdas[1], 1) * 2 * stats.norm.pdf(at) * top * np.cos(z * np.pi / 2)
        return integrate.simpson(inside, x=z, axis=1) * np.pi / 2 + stats.chi2.sf(q / lambdas[0], 1)
    u = np.concatenate([np.linspace(1e-9, 20, 20_001), np.geomspace(20, 2e4, 20_001)[1:]]) / scale
    theta = 0.5 * np.arctan(np.outer(lambdas, u)).sum(0)
    size = np.exp(-0.25 * np.log1p(np.outer(lambdas, u) ** 2).sum(0)) / u
    out = []
    for one in q:
        y = np.sin(theta - 0.5 * one * u) * size
        out.append(0.5 + (integrate.simpson(y[:20_001], x=u[:20_001]) + integrate.simpson(y[20_000:], x=u[20_000:])) / math.pi)
    return np.array(out)


def lambdas_of(a: Any) -> Any:
    found = np.linalg.eigvalsh(a)
    return found[found > 1e-10 * found.max()][::-1]


def dense_skat_o(u: Any, a: Any) -> float:
    """p of SKAT-O written out from Lee, Wu and Lin (2012) with a square root of the covariance, by SciPy's adaptive quadrature."""
    size = len(u)
    if size == 1:
        return float(stats.chi2.sf(u[0] ** 2 / a[0, 0], 1))
    values, vectors = np.linalg.eigh(a)
    z = (vectors * np.sqrt(np.maximum(values, 0))).T  # z'z = a
    each, quantile = [], []
    for rho in np.minimum(RHO, 0.999):
        r = (1 - rho) * np.eye(size) + rho
        factor = np.linalg.cholesky(r)
        spectrum = lambdas_of(factor.T @ a @ factor)
        each.append(float(mixture_sf((1 - rho) * (u @ u) + rho * u.sum() ** 2, spectrum)[0]))
        quantile.append(spectrum)
    least = min(each)
    limits = []
    for spectrum in quantile:
        c1, c2, c4 = (float((spectrum**k).sum()) for k in (1, 2, 4))
        df = c2**2 / c4
        limits.append((stats.chi2.isf(least, df) - df) / math.sqrt(2 * df) * math.sqrt(2 * c2) + c1)
    mean = z.mean(1)
    shares = mean @ z / (mean @ mean)
    along = np.outer(mean, shares)
    across = z - along
    spectrum = lambdas_of(across.T @ across)
    cross = 4 * float(np.sum((along.T @ along) * (across.T @ across)))
    variance = 2 * float((spectrum**2).sum())
    grid = np.minimum(RHO, 0.999)
    tau = (mean @ mean) * (size**2 * grid + (1 - grid) * float(shares @ shares))

    shrink = math.sqrt(variance / (variance + cross))

    def shifted(t: Any) -> Any:
        limit = np.min([(high - s * t * t) / (1 - rho) for high, s, rho in zip(limits, tau, grid, strict=True)], axis=0)
        return (limit - spectrum.sum()) * shrink + spectrum.sum()

    end = float(optimize.brentq(shifted, 0, 20)) if shifted(0.0) > 0 > shifted(20.0) else 8.0
    s = np.linspace(0, 1, 201)  # t = end (1 - s^2): the probability rises as the square root where it begins
    t = end * (1 - s * s)
    beyond = mixture_sf(np.maximum(shifted(t), 1e-12), spectrum)
    p = float(integrate.simpson(beyond * 2 * stats.norm.pdf(t) * 2 * end * s, x=s)) + 2 * float(stats.norm.sf(end))
    return min(p, 3 * least)


def cauchy(p: Any, weight: Any) -> float:
    """Liu and Xie 2020."""
    return float(stats.cauchy.sf(np.average(np.tan((0.5 - np.asarray(p)) * math.pi), weights=weight)))
