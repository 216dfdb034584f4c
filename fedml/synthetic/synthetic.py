"""Synthetic cohorts with a known truth: several sites, each with images, variants, clinical values and outcomes.

Genotypes come from a coalescent simulation (msprime; Baumdicker et al. 2022, Genetics 220:iyab229): one deme per site,
split from a common ancestor, with some migration. Survival times are drawn by inversion from a Weibull
proportional-hazards model (Bender, Augustin and Blettner 2005, Stat Med 24:1713-1723). Every effect is a constant below
and is repeated in ``truth.json``, so that a study can be held against what was planted.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedml.errors import InputError, RunError, nearest
from fedml.seeds import derive_seed
from fedml.synthetic.synthetic_images import FIELD_OF_VIEW, WRITERS, Voxels, tissue_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Alleles = NDArray[np.int8]

SITE_NAMES = ("oslo", "porto", "utrecht", "lyon", "tartu", "graz", "malmo", "gent", "brno", "cork")
CONTIG, CONTIG_LENGTH = "chr22", 50_818_468  # GRCh38
REGION_START = 17_000_000  # past the centromere; the largest region still ends inside the contig

# Demography: sizes in diploid individuals, times in generations. Fst between two sites is about 0.05 to 0.08.
DEME_SIZE, ANCESTOR_SIZE, SPLIT_TIME, MIGRATION = 5_000, 10_000, 600, 5e-5
MUTATION_RATE, RECOMBINATION_RATE = 1.25e-8, 1e-8  # per base and generation
MIN_MAF = 0.02

AGE_MEAN, AGE_SD = 62.0, 10.0  # years; the centre and unit of every age effect
LN_CRP_MEAN, LN_CRP_SD = 1.0, 0.8  # CRP in mg/L is log-normal
RADIUS_MEAN, RADIUS_SD = 7.0, 2.0  # mm; the centre and unit of the lesion effect
RADIUS_BASE, RADIUS_PER_ALT, RADIUS_PER_AGE_SD, RADIUS_NOISE = 5.9, 1.4, 0.8, 1.6  # mm
RADIUS_RANGE = (2.5, 16.0)  # mm

BETA_AGE, BETA_CRP, BETA_LESION = 0.7, 1.0, 1.25  # log-odds per unit above
BETA_ALT = (0.8, -1.3, 1.3)  # log-odds per ALT copy; the first variant also sets lesion size and hazard
PREVALENCE = 0.45
SEVERITY_MEAN, SEVERITY_PER_LOGIT, SEVERITY_NOISE = 50.0, 5.0, 6.0  # points

HAZARD_RATIO_ALT, HAZARD_RATIO_AGE = 1.8, 1.5  # per ALT copy; per AGE_SD
WEIBULL_SHAPE, WEIBULL_SCALE = 1.3, 2_400.0  # days, for no ALT copy at AGE_MEAN
CENSORING = (365.0, 2_920.0)  # days, uniform

NO_IMAGE, TWO_IMAGES = 0.04, 0.03  # shares of persons
MISSING_RATES = (0.02, 0.05, 0.08)  # of age, CRP and BMI cells, by turns over the sites
AGE_SHIFTS = (0.0, 3.0, -3.0)  # years, by turns over the sites

SITE_TOML = """\
# A synthetic site without real persons.
[site]
name = "NAME"
[data]
persons = "persons.csv"
public = true
image = { path = "IMAGES", format = "FORMAT" }
variants = { path = "cohort.vcf.gz", build = "GRCh38" }
clinical = { path = "clinical.csv" }
"""


class _Variant(NamedTuple):
    id: str
    position: int  # 1-based on CONTIG
    ref: str
    alt: str


@dataclass(frozen=True)
class _People:
    """What is true of one site's persons, each array (persons,): years, 0/1, mg/L, kg/m2, mm, and ALT copies."""

    ids: list[str]
    age: Floats
    sex: Ints
    crp: Floats
    bmi: Floats
    radius: Floats
    causal: Floats  # (persons, causal variants)

    def log_odds_terms(self) -> dict[str, Floats]:
        """What each input adds to the log-odds of disease, (persons,) each, without the intercept."""
        crp_z = (np.log(self.crp) - LN_CRP_MEAN) / LN_CRP_SD
        return {
            "image": BETA_LESION * (self.radius - RADIUS_MEAN) / RADIUS_SD,
            "variants": (self.causal * BETA_ALT).sum(axis=1),
            "clinical": BETA_AGE * (self.age - AGE_MEAN) / AGE_SD + BETA_CRP * crp_z,
        }


@dataclass(frozen=True)
class Size:
    """How much a synthetic cohort has of each: sites, persons at each site, variants, and voxels along each axis of an image."""

    sites: int = 3
    persons: int = 120
    variants: int = 200
    image_size: int = 24


LIMITS = {"sites": (1, 64), "persons": (10, 10_000), "variants": (10, 5_000), "image_size": (8, 128)}


def write_synthetic(
    out: Path, size: Size = Size(), *, seed: int = 1, image: str = "nifti", progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Write a synthetic cohort of ``size`` under ``out`` and return the content of ``out/truth.json``.

    Each site's folder has ``site.toml``, ``persons.csv`` (disease 0/1, severity in points, time in days, event 0/1),
    ``clinical.csv`` (age in years, sex 0 female and 1 male, CRP in mg/L, BMI in kg/m2; empty where missing),
    ``cohort.vcf.gz`` with its index, and images (cubes of ``image_size`` voxels over 48 mm, int16) in the format ``image``:
    nifti, dicom or npz, the same voxels in each (``fedml.synthetic.synthetic_images``). Some persons have no image and some
    have two. REF is the simulated ancestral base, not the base of GRCh38 at that position.

    The same arguments give the same bytes in every file. ``progress`` is called with one line for each step.

    Raises:
        InputError: an argument is out of range, or ``out`` exists and is not an empty folder.
        RunError: writing failed, or the simulation gave too few variants. Nothing is left behind in either case.
    """
    sites, persons, variants, image_size = size.sites, size.persons, size.variants, size.image_size
    for key, (low, high) in LIMITS.items():
        value = getattr(size, key)
        if not low <= value <= high:
            raise InputError(f"A synthetic cohort cannot have {key} = {value}; give {key} from {low} to {high}.")
    if image not in WRITERS:
        raise InputError(f'A synthetic cohort cannot have image = "{image}"{nearest(image, WRITERS)}; give one of {", ".join(WRITERS)}.')
    say = progress or (lambda _line: None)
    names = [SITE_NAMES[k] if k < len(SITE_NAMES) else f"site{k + 1}" for k in range(sites)]

    with _staging(Path(out)) as tree:
        say(f"simulating {variants} variants of {sites * persons} persons")
        table, haplotypes = _simulate_genotypes(names, persons, variants, seed)
        dosages = (haplotypes[:, 0::2] + haplotypes[:, 1::2]).astype(np.float64).reshape(variants, sites, persons)
        causal = _pick_causal(dosages)
        people = [_draw_people(name, k, dosages[causal, k].T, seed) for k, name in enumerate(names)]
        terms = {key: np.concatenate([p.log_odds_terms()[key] for p in people]) for key in people[0].log_odds_terms()}
        predictor = np.sum(list(terms.values()), axis=0)
        intercept = _intercept(predictor, PREVALENCE)
        log_odds = np.split(intercept + predictor, sites)
        # Spread evenly, so that no two scanners share a gain or an offset.
        gains = _rng(seed, "all", "gains").permutation(np.linspace(0.7, 1.5, sites)).round(4).tolist()
        offsets = _rng(seed, "all", "offsets").permutation(np.linspace(-40, 80, sites)).round(2).tolist()
        scanners = {n: {"gain": g, "offset": o} for n, g, o in zip(names, gains, offsets, strict=True)}

        disease: list[Ints] = []
        risks, radii = {}, {}  # site to person to value
        for k, (name, who) in enumerate(zip(names, people, strict=True)):
            say(f"writing site {name} ({k + 1} of {sites})")
            folder = tree / name
            folder.mkdir()
            place, write = WRITERS[image]
            manifest = SITE_TOML.replace("NAME", name).replace("IMAGES", place).replace("FORMAT", image)
            (folder / "site.toml").write_text(manifest, encoding="utf-8", newline="\n")
            risks[name] = dict(zip(who.ids, log_odds[k].round(6).tolist(), strict=True))
            radii[name] = dict(zip(who.ids, who.radius.round(6).tolist(), strict=True))
            disease.append(_write_persons(folder / "persons.csv", name, who, log_odds[k], seed))
            _write_clinical(folder / "clinical.csv", name, who, MISSING_RATES[k % len(MISSING_RATES)], seed)
            _write_vcf(folder / "cohort.vcf.gz", table, haplotypes.reshape(variants, sites, -1)[:, k], who.ids)
            write(folder / place, name, seed, FIELD_OF_VIEW / image_size, _scans(name, who, image_size, scanners[name], seed))

        sick = np.concatenate(disease)
        truth = {
            "seed": seed,
            "sites": names,
            "persons_per_site": persons,
            "oracle": {
                "auroc": _auroc(predictor, sick),
                "auroc_by_input": {key: _auroc(term, sick) for key, term in terms.items()},
                "auroc_without_input": {key: _auroc(predictor - term, sick) for key, term in terms.items()},
            },
            **_planted([table[i] for i in causal], intercept),
            "scanners": scanners,
            "log_odds": risks,
            "lesion_radius_mm": radii,
        }
        (tree / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8", newline="\n")
    return truth


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``out`` when the block ends well and is removed when it does not."""
    out = out.resolve()
    exists = out.exists()
    if exists and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder; name a new folder or empty this one.")
    made = [p for p in out.parents if not p.exists()]  # nearest first
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # An empty folder that is there may be a mount point, which no rename can replace: it is filled from inside.
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.partial-", dir=out if exists else out.parent) as partial:
            tree = Path(partial) / "tree"  # mkdtemp's own folder is closed to others; this one follows the umask
            tree.mkdir()
            yield tree
            if exists:
                for child in sorted(tree.iterdir()):
                    os.replace(child, out / child.name)
            else:
                os.replace(tree, out)
    except BaseException as error:
        for parent in made:
            with suppress(OSError):  # not made yet, or in use by now
                parent.rmdir()
        if isinstance(error, OSError):
            cause = error.strerror or error
            raise RunError(f"{out} could not be written ({cause}); name a folder with room for it.") from error
        raise


def _rng(seed: int, *parts: int | str) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, "synthetic", *parts))


def _simulate_genotypes(names: Sequence[str], persons: int, count: int, seed: int) -> tuple[list[_Variant], Alleles]:
    """Biallelic SNPs, evenly thinned from those with a pooled minor allele frequency of MIN_MAF or more.

    The second part has the haplotypes, (variants, sites x persons x 2), 0 for REF and 1 for ALT.
    """
    import msprime

    demography = msprime.Demography()
    for name in names:
        demography.add_population(name=name, initial_size=DEME_SIZE)
    demography.add_population(name="ancestor", initial_size=ANCESTOR_SIZE)
    if len(names) > 1:  # as in the island model, MIGRATION is what a deme receives from all others together
        demography.set_symmetric_migration_rate(list(names), MIGRATION / (len(names) - 1))
    demography.add_population_split(time=SPLIT_TIME, derived=list(names), ancestral="ancestor")
    seeds = [derive_seed(seed, "synthetic", "all", p) % (2**32 - 1) + 1 for p in ("ancestry", "mutations")]
    genome = {"sequence_length": max(1_000_000, 6_000 * count), "recombination_rate": RECOMBINATION_RATE}
    samples = dict.fromkeys(names, persons)
    tree = msprime.sim_ancestry(samples, demography=demography, random_seed=seeds[0], **genome)
    tree = msprime.sim_mutations(tree, rate=MUTATION_RATE, model=msprime.HKY(kappa=4.0), random_seed=seeds[1])
    low, high = MIN_MAF, 1 - MIN_MAF
    common = [v.site.id for v in tree.variants() if len(v.alleles) == 2 and low <= v.genotypes.mean() <= high]
    if len(common) < count:
        raise RunError(f"The simulation gave {len(common)} of {count} variants; ask for fewer or change the seed.")
    chosen = np.array(common)[np.linspace(0, len(common) - 1, count).round().astype(int)]
    tree = tree.delete_sites(np.setdiff1d(np.arange(tree.num_sites), chosen))
    found = enumerate(tree.variants(), start=1)
    table = [_Variant(f"sim{k:06d}", REGION_START + int(v.site.position) + 1, *v.alleles) for k, v in found]
    return table, tree.genotype_matrix().astype(np.int8)


def _pick_causal(dosages: Floats) -> list[int]:
    """Rows of ``dosages`` (variants, sites, persons) that are common at every site and nearly unlinked."""
    frequency = dosages.mean(axis=2) / 2
    pooled = dosages.reshape(len(dosages), -1)
    spread = pooled.std(axis=1, keepdims=True)
    common = np.where(spread[:, 0] > 0, np.minimum(frequency, 1 - frequency).min(axis=1), -1.0)
    scaled = (pooled - pooled.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-9)
    picked = [int(common.argmax())]
    while len(picked) < len(BETA_ALT):
        linkage = ((scaled @ scaled[picked].T / pooled.shape[1]) ** 2).max(axis=1)  # r2 with the nearest one picked
        linkage[picked] = np.inf
        allowed = linkage <= max(0.02, float(linkage.min()))
        picked.append(int(np.where(allowed, common, -2.0).argmax()))
    return picked


def _draw_people(name: str, index: int, causal: Floats, seed: int) -> _People:
    count = len(causal)
    rng = _rng(seed, name, "clinical")
    age = np.clip(rng.normal(AGE_MEAN + AGE_SHIFTS[index % len(AGE_SHIFTS)], AGE_SD, count), 18, 95).round(1)
    sex = rng.integers(0, 2, count)
    crp = np.exp(rng.normal(LN_CRP_MEAN, LN_CRP_SD, count)).round(2).clip(0.05)
    bmi = rng.normal(26.5, 4.0, count).clip(15, 50).round(1)
    noise = _rng(seed, name, "lesion").normal(0, RADIUS_NOISE, count)
    radius = RADIUS_BASE + RADIUS_PER_ALT * causal[:, 0] + RADIUS_PER_AGE_SD * (age - AGE_MEAN) / AGE_SD + noise
    ids = [f"{name}-{i + 1:04d}" for i in range(count)]
    return _People(ids, age, sex, crp, bmi, radius.clip(*RADIUS_RANGE), causal)


def _intercept(predictor: Floats, prevalence: float) -> float:
    """The intercept, to six decimals, at which the mean risk over all persons is ``prevalence``: by bisection."""
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(middle + predictor).mean() < prevalence else (low, middle)
    return round(low, 6)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))


def _auroc(score: Floats, label: Ints) -> float | None:
    """Mann-Whitney estimate, ties counted half; None when one class is absent."""
    cases, controls = score[label == 1], np.sort(score[label == 0])
    if not len(cases) or not len(controls):
        return None
    below = np.searchsorted(controls, cases, "left") + np.searchsorted(controls, cases, "right")
    return round(float(below.mean()) / 2 / len(controls), 6)


def _write_persons(path: Path, name: str, who: _People, log_odds: Floats, seed: int) -> Ints:
    """Draw and write the outcomes; returns disease, (persons,)."""
    count = len(who.ids)
    disease = (_rng(seed, name, "disease").random(count) < _sigmoid(log_odds)).astype(np.int64)
    noise = _rng(seed, name, "severity").normal(0, SEVERITY_NOISE, count)
    severity = SEVERITY_MEAN + SEVERITY_PER_LOGIT * log_odds + noise
    rng = _rng(seed, name, "survival")
    log_hazard = np.log(HAZARD_RATIO_ALT) * who.causal[:, 0] + np.log(HAZARD_RATIO_AGE) * (who.age - AGE_MEAN) / AGE_SD
    # Bender et al. 2005: -log(U) is the cumulative hazard at the event, (t / scale)^shape x exp(log_hazard).
    failure = WEIBULL_SCALE * (rng.exponential(1.0, count) / np.exp(log_hazard)) ** (1 / WEIBULL_SHAPE)
    censored = rng.uniform(*CENSORING, count)
    days = np.ceil(np.minimum(failure, censored)).clip(1).astype(np.int64)
    rows = zip(who.ids, disease, (f"{x:.2f}" for x in severity), days, (failure <= censored).astype(int), strict=True)
    _write_csv(path, ("id", "disease", "severity", "time_days", "event"), rows)
    return disease


def _write_clinical(path: Path, name: str, who: _People, rate: float, seed: int) -> None:
    cells = np.stack([who.age, who.crp, who.bmi]).astype(str)
    cells[_rng(seed, name, "missing").random(cells.shape) < rate] = ""
    rows = zip(who.ids, cells[0], who.sex, cells[1], cells[2], strict=True)
    _write_csv(path, ("id", "age", "sex", "crp", "bmi"), rows)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    lines = [",".join(str(cell) for cell in row) for row in (header, *rows)]  # no cell has a comma or a quote
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _write_vcf(path: Path, table: Sequence[_Variant], haplotypes: Alleles, ids: Sequence[str]) -> None:
    import pysam

    lines = [
        "##fileformat=VCFv4.2",
        f"##contig=<ID={CONTIG},length={CONTIG_LENGTH},assembly=GRCh38>",
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">',
        "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *ids]),
    ]
    for v, row in zip(table, haplotypes.tolist(), strict=True):
        calls = [f"{a}|{b}" for a, b in zip(row[0::2], row[1::2], strict=True)]
        lines.append("\t".join([CONTIG, str(v.position), v.id, v.ref, v.alt, ".", "PASS", ".", "GT", *calls]))
    with pysam.BGZFile(str(path), "wb") as file:
        file.write(("\n".join(lines) + "\n").encode("ascii"))
    pysam.tabix_index(str(path), preset="vcf")


def _scans(name: str, who: _People, size: int, scanner: dict[str, float], seed: int) -> Iterator[tuple[str, list[Voxels]]]:
    """Each person who has images, in the table's order, and the images: int16 (size, size, size)."""
    order = _rng(seed, name, "image counts").permutation(len(who.ids)).tolist()
    none, two = max(1, round(NO_IMAGE * len(order))), max(1, round(TWO_IMAGES * len(order)))
    repeated = set(order[none : none + two])
    for i in sorted(order[none:]):
        rng = _rng(seed, name, "image", i)
        tissue = tissue_of(float(who.radius[i]), size, rng)
        # A second image is a repeat scan: the same tissue under new noise.
        made = [scanner["gain"] * (tissue + rng.normal(0, 8, tissue.shape)) + scanner["offset"] for _ in range(2 if i in repeated else 1)]
        yield who.ids[i], [np.rint(scan).astype(np.int16) for scan in made]


def _planted(causal: Sequence[_Variant], intercept: float) -> dict[str, Any]:
    """The planted models with their units, as ``truth.json`` states them."""

    def effects(unit: str, *rows: tuple[str, float, str]) -> list[dict[str, Any]]:
        return [{"name": name, unit: value, "per": per} for name, value, per in rows]

    first, copy, years = causal[0].id, "ALT copy", f"{AGE_SD:g} years from {AGE_MEAN:g}"
    log_odds = [
        ("age", BETA_AGE, years),
        ("crp", BETA_CRP, f"{LN_CRP_SD:g} of ln(mg/L) from {LN_CRP_MEAN:g}"),
        ("lesion", BETA_LESION, f"{RADIUS_SD:g} mm of radius from {RADIUS_MEAN:g}"),
        *((v.id, beta, copy) for v, beta in zip(causal, BETA_ALT, strict=True)),
    ]
    hazard_ratios = [(first, HAZARD_RATIO_ALT, copy), ("age", HAZARD_RATIO_AGE, years)]
    millimetres = [(first, RADIUS_PER_ALT, copy), ("age", RADIUS_PER_AGE_SD, years)]
    weibull = {"shape": WEIBULL_SHAPE, "scale_days": WEIBULL_SCALE, "censoring_days": list(CENSORING)}
    radius = {"base_mm": RADIUS_BASE, "noise_sd_mm": RADIUS_NOISE, "range_mm": list(RADIUS_RANGE)}
    return {
        "causal_variants": [{"contig": CONTIG, **v._asdict(), "effect_allele": v.alt} for v in causal],
        "disease": {"model": "logistic", "intercept": intercept, "effects": effects("log_odds", *log_odds)},
        "severity": {"mean": SEVERITY_MEAN, "per_log_odds": SEVERITY_PER_LOGIT, "noise_sd": SEVERITY_NOISE},
        "survival": {"model": "Weibull", **weibull, "effects": effects("hazard_ratio", *hazard_ratios)},
        "lesion_radius": {"model": "linear", **radius, "effects": effects("mm", *millimetres)},
    }
