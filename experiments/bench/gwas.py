"""Benchmark: a federated association study against PLINK 2 on pooled data, with equal results; and a meta-analysis of six sites.

    python -m fedml.experiments.bench.gwas --data DIR [--repeats 5]

Genotypes of HapMap3 and 1000 Genomes phase 1 with a simulated height (``fedml prepare trait``). fedml: two sites in this process, from the
first message to the written table and plots; the times of the stages are from the run's record. PLINK (``plink2`` on the PATH; skipped if
it is missing) reads one file of all persons: ``--pca 4`` (exact, as fedml's), and ``--glm`` with age, sex and four components from a dense
decomposition of the pooled genotypes. One thread each. Effects are compared for variants without missing calls: PLINK excludes persons
without a call, fedml imputes the mean. Then height and tall with the same persons as six sites by population: federated, and each site
separately (with components of that site), combined by inverse variance.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fedml.analytics.sumstats import genomic_inflation
from fedml.errors import RunError
from fedml.experiments.bench.timing import Pairs, machine, run_process, table
from fedml.experiments.prepare import prepare
from fedml.experiments.runs.association import HIT, combine, read_table
from fedml.experiments.runs.run import run_nodes
from fedml.runs.log import read_events
from fedml.study.read import read_study
from fedml.study.study import Study, for_roster

STUDIES = Path(__file__).parents[1] / "studies"
SITES = ("hapmap3", "kg1")
# Site -> study and populations of its persons. No site has fewer persons than the columns that the components need.
PIECES = {
    "africa": ("hapmap3", ("MKK", "LWK", "YRI", "ASW")),
    "europe-mexico": ("hapmap3", ("CEU", "TSI", "MEX")),
    "gujarat": ("hapmap3", ("GIH",)),
    "east-asia": ("hapmap3", ("JPT", "CHB", "CHD")),
    "finland": ("kg1", ("FIN",)),
    "others": ("kg1", ("CHS", "GBR", "CLM", "PUR", "CHB", "MXL", "JPT", "IBS", "ASW", "TSI", "CEU", "LWK", "YRI")),
}
PLINK_STEPS = ("--pca", "--glm")


def deal(sites: Path, out: Path) -> Path:
    """Writes the persons of the two sites as six sites to ``out``, with links to the genotypes; returns ``out``."""
    for name, (site, populations) in PIECES.items():
        folder = out / name
        folder.mkdir(parents=True)
        for file in (sites / site).glob("genotypes.*"):
            (folder / file.name).symlink_to(file.resolve())
        shutil.copyfile(sites / site / "clinical.csv", folder / "clinical.csv")
        persons = pd.read_csv(sites / site / "persons.csv", dtype=str)
        persons[persons.population.isin(populations)].to_csv(folder / "persons.csv", index=False)
        (folder / "site.toml").write_text((sites / site / "site.toml").read_text().replace(f'name = "{site}"', f'name = "{name}"'))
    return out


def scan(study: Study, sites: Path, out: Path) -> dict[str, float]:
    """Runs ``study``; returns the seconds of its stages and in total."""
    out.mkdir(parents=True)
    began = time.time()
    run_nodes(study, [{"manifest": str((sites / name / "site.toml").resolve())} for name in study.federation.sites], out, "gwas")
    events = read_events(out)[0]
    at = {event["event"]: event["time"] for event in events}
    steps = [(event["doing"], event["time"]) for event in events if event["event"] == "step"]
    components = max(when for doing, when in steps if "components" in doing)
    scanned = max(when for doing, when in steps if doing.startswith("variants"))
    return {
        "agreement": at["agreed"] - began, "components": components - at["agreed"], "scan": scanned - components,
        "table and plots": at["gwas"] - scanned, "all": at["gwas"] - began,
    }  # fmt: skip


def write_pooled(sites: Path, folder: Path) -> list[str]:
    """Writes all persons to one PLINK file, with phenotype and covariates; returns the rsIDs of variants without missing calls."""
    from bed_reader import open_bed, to_bed

    parts, tables, first = [], [], None
    for site in SITES:
        bed = open_bed(sites / site / "genotypes.bed")
        persons = pd.read_csv(sites / site / "persons.csv", index_col="id").join(pd.read_csv(sites / site / "clinical.csv", index_col="id"))
        first = first or bed
        order = pd.Index(bed.sid).get_indexer(first.sid)
        dosage = bed.read(index=np.s_[pd.Index(bed.iid).get_indexer(persons.index), :], dtype="int8")[:, order]
        turned = (bed.allele_1[order] != first.allele_1) & (dosage >= 0)
        parts.append(np.where(turned, 2 - dosage, dosage))
        tables.append(persons)
    assert first is not None
    dosage, persons = np.concatenate(parts), pd.concat(tables)
    properties: dict[str, Any] = {"fid": persons.index.tolist(), "iid": persons.index.tolist(), "sid": first.sid}
    properties |= {"chromosome": first.chromosome, "bp_position": first.bp_position, "allele_1": first.allele_1, "allele_2": first.allele_2}
    to_bed(folder / "all.bed", dosage, properties=properties)
    index = pd.MultiIndex.from_arrays([persons.index, persons.index], names=["#FID", "IID"])
    persons.height.set_axis(index).to_csv(folder / "pheno", sep="\t")
    covariates = persons[["age", "sex"]].assign(**{f"pc{k}": column for k, column in enumerate(_components(dosage).T)})
    covariates.set_axis(index).to_csv(folder / "covar", sep="\t")
    called: list[str] = first.sid[(dosage >= 0).all(0)].tolist()
    return called


def _components(dosage: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
    """(persons, 4) principal components from the variants that fedml uses."""
    g = np.where(dosage < 0, np.nan, dosage)
    f = np.nanmean(g, axis=0) / 2
    common = np.minimum(f, 1 - f) >= 0.01
    z = np.nan_to_num((g - 2 * f) / np.sqrt(2 * f * (1 - f)))[:, common]
    return np.asarray(np.linalg.eigh(z @ z.T)[1][:, ::-1][:, :4], np.float64)


def plink(folder: Path) -> dict[str, float]:
    """Runs PLINK's two steps; returns the seconds of each."""
    common = ["plink2", "--bfile", "all", "--threads", "1", "--out", "own"]
    glm = ["omit-ref", "hide-covar", "--pheno", "pheno", "--covar", "covar", "--covar-variance-standardize"]
    steps = {"--pca": [*common, "--maf", "0.01", "--pca", "4"], "--glm": [*common, "--glm", *glm]}
    return {name: run_process(command, folder).seconds for name, command in steps.items()}


def check_equal(ours: pd.DataFrame, folder: Path, called: list[str]) -> str:
    """Asserts that the table agrees with PLINK's within the six digits that PLINK prints; returns the differences as text."""
    theirs = pd.read_csv(folder / "own.height.glm.linear", sep="\t").set_index("ID").loc[called]
    results = ours.set_index("rsid").loc[called]
    beta = np.where(results.effect_allele == theirs.A1, theirs.BETA, -theirs.BETA)
    apart = float((np.abs(beta - results.beta) / results.standard_error).max())
    error = float(np.abs(theirs.SE / results.standard_error - 1).max())
    assert apart < 1e-4, apart
    assert error < 1e-5, error
    return f"{len(called):,} variants without missing calls: effects within {apart:.1e} standard errors, standard errors within {error:.1e}"


def compare_plink(sites: Path, work: Path, repeats: int) -> None:
    """Times fedml and PLINK in turn, and prints the tables."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    called, study = write_pooled(sites, work), read_study(STUDIES / "height.toml")
    stages: list[Mapping[str, float]] = []
    steps: list[Mapping[str, float]] = []
    has_plink = shutil.which("plink2") is not None
    with threadpool_limits(1):
        scan(study, sites, work / "first")  # warm-up: imports libraries, packs the genotypes
        for k in range(repeats):
            stages.append(scan(study, sites, work / f"run{k}"))
            if has_plink:
                steps.append(plink(work))
    rows = [(name, f"{statistics.median(s[name] for s in stages):.2f}") for name in stages[0]]
    table("two sites, one thread", ("stage", "seconds"), rows)
    if not has_plink:
        print("plink2 is not on the PATH; the comparison is skipped")
        return
    pairs = (("components: --pca 4", "components", ("--pca",)), ("scan: --glm", "scan", ("--glm",)), ("all: both", "all", PLINK_STEPS))
    rows2 = [Pairs([s[ours] for s in stages], [sum(s[n] for n in names) for s in steps]).row(what, digits=3) for what, ours, names in pairs]
    table("against PLINK 2 on pooled data", ("", "ours s", "PLINK s", "ratio", "range"), rows2)
    print(check_equal(read_table(work / "first"), work, called))


def compare_meta(name: str, sites: Path, pieces: Path, work: Path) -> None:
    """Six sites: the federated study, and each site separately, combined. Prints the comparison."""
    study = for_roster(read_study(STUDIES / f"{name}.toml"), list(PIECES))
    scan(study, pieces, work / "six")
    whole = read_table(work / "six").set_index("rsid")
    single: dict[str, pd.DataFrame] = {}
    for site in PIECES:
        try:
            scan(for_roster(study, [site]), pieces, work / site)
        except RunError as error:
            print(f"{site} alone: {error}")
            continue
        results = read_table(work / site).set_index("rsid").reindex(whole.index)
        single[site] = results.assign(beta=np.where(results.effect_allele == whole.other_allele, -results.beta, results.beta))
    combined = combine(single)
    planted = pd.Index([row["id"] for row in json.loads((sites / "truth.json").read_text())["planted"]])

    def column(results: pd.DataFrame) -> list[str]:
        hits = results.index[results.neg_log10_p > -np.log10(HIT)]
        inflation = genomic_inflation(10.0 ** -results.neg_log10_p.dropna().to_numpy())
        strongest, known = results.neg_log10_p.loc[planted].nlargest(10).median(), len(hits.intersection(planted))
        return [f"{results.beta.notna().sum():,}", str(len(hits)), str(known), f"{inflation:.3f}", f"{strongest:.2f}"]

    names = ("variants with a result", "p below 5e-8", "of these planted", "lambda", "ten strongest planted: median -log10 p")
    persons = ", ".join(f"{site} {int(results.n.max())}" for site, results in single.items())
    table(f"{name}, six sites: {persons}", ("", "federated", "meta"), list(zip(names, column(whole), column(combined), strict=True)))
    both = whole.assign(meta=combined.beta, error=combined.standard_error).dropna(subset=["beta", "meta"])
    low, median, high = (both.error / both.standard_error).quantile([0.05, 0.5, 0.95])
    rare = np.minimum(both.effect_allele_frequency, 1 - both.effect_allele_frequency) < 0.05
    correlations = [np.corrcoef(results.beta, results.meta)[0, 1] for results in (both, both[rare])]
    print(f"correlation of betas {correlations[0]:.4f}; of the {rare.sum():,} variants with frequency below 5 %: {correlations[1]:.4f}")
    print(f"standard errors, meta-analysis / federated: median {median:.3f}, 5 % to 95 % {low:.3f} to {high:.3f}")


def main() -> None:
    """Prints the machine and the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        sites, work = Path(name) / "sites", Path(name) / "work"
        work.mkdir()
        prepare("trait", sites, data=given.data, say=lambda _: None)
        compare_plink(sites, work, given.repeats)
        pieces = deal(sites, work / "pieces")
        for study in ("height", "tall"):
            compare_meta(study, sites, pieces, work / study)


if __name__ == "__main__":
    main()
