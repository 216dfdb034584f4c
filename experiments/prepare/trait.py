"""A simulated trait on real genotypes: HapMap3 and 1000 Genomes phase 1 as two sites, with known effects and confounding.

Genotypes are those of ``ancestry``, from the same files. All other values are simulated: age, sex, ``height`` (cm) and ``tall`` (the
tallest quarter). Height is 170 cm, plus the effects of 40 planted variants, age and sex, plus a shift by the continent of a person's
ancestors, plus noise. The shift represents all differences between populations that the genotype does not cause (nutrition, methods of
measurement); the assignment of shifts to continents is random. Variants that differ between populations therefore seem associated unless
the model includes principal components. ``truth.json`` lists the planted variants with their effects, and the shifts.

Some persons are genotyped in both studies, under the same id. They are excluded from 1000 Genomes, so that each person counts once.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import MISSING, Selection
from fedml.cohort.variants.open import open_source
from fedml.errors import InputError
from fedml.experiments.prepare import ancestry
from fedml.experiments.prepare.source import Dataset, Say, write_manifest, write_table
from fedml.seeds import derive_seed

Floats = npt.NDArray[np.float64]
PLANTED = 40
MIN_MAF = 0.05  # smallest minor allele frequency of a planted variant, over both studies
MEAN, GENETIC_SD, NOISE_SD = 170.0, 3.5, 4.0  # cm
SHIFTS = (-6.0, -3.0, 0.0, 3.0, 6.0)  # cm, one for each continent
AGE_EFFECT, SEX_EFFECT = -0.05, 6.0  # cm a year; cm from 0 to 1
AGES = {"hapmap3": 55.0, "kg1": 47.0}  # years, mean
QUARTER = 0.25  # fraction of all persons who are tall
_SWAP = str.maketrans("ACGT", "TGCA")


class People(NamedTuple):
    """A site's persons: ``ids``, ``populations`` and ``continents`` (persons,); ``dosage`` (persons, variants) int8 of ``keys``;
    ``excluded``: number of persons excluded because they are at the other site too."""

    ids: list[str]
    populations: list[str]
    continents: list[str]
    keys: tuple[Variant, ...]
    dosage: npt.NDArray[np.int8]
    excluded: int


def build(files: dict[str, Path], out: Path, seed: int, say: Say) -> None:
    """Writes two site folders and ``truth.json``; the trait is drawn with ``seed``.

    Raises:
        InputError: a file is malformed, or fewer than ``PLANTED`` variants are common at both sites.
    """
    ancestry.build(files, out, seed, lambda _: None)
    first, second = ancestry.STEMS
    people = {first: _read(out / first, set())}
    people[second] = _read(out / second, set(people[first].ids))
    rng = np.random.default_rng(derive_seed("trait", seed))
    genetic, planted = _plant(people[first], people[second], rng)
    shift = dict(zip(sorted(set(ancestry.CONTINENT.values())), rng.permutation(SHIFTS).tolist(), strict=True))
    site = np.repeat([first, second], [len(people[first].ids), len(people[second].ids)])
    age = np.asarray(np.round(np.clip(rng.normal([AGES[s] for s in site], 10.0), 20, 90), 1), np.float64)
    sex = rng.integers(0, 2, len(site))
    shifted = np.array([shift[c] for site_people in people.values() for c in site_people.continents])
    noise = rng.normal(0, NOISE_SD, len(site))
    expected = MEAN + genetic + AGE_EFFECT * (age - 50) + SEX_EFFECT * sex + shifted
    height = np.asarray(np.round(expected + noise, 2), np.float64)
    tall = (height > np.quantile(height, 1 - QUARTER)).astype(int)
    for name, site_people in people.items():
        rows = np.flatnonzero(site == name)
        _write(out / name, name, site_people, height[rows], tall[rows], age[rows], sex[rows])
        what = f"{len(site_people.ids)} persons, {len(site_people.keys)} variants"
        say(f"{name}: {what}; {height[rows].mean():.1f} cm on average, {tall[rows].sum()} tall")
    truth = {"seed": seed, "age_cm_a_year": AGE_EFFECT, "sex_cm": SEX_EFFECT, "noise_sd_cm": NOISE_SD, "shift_cm": shift}
    truth |= {"planted": planted}
    (out / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8", newline="\n")
    say(f"excluded from {second}: {people[second].excluded} persons who are also in {first}, so that each person counts once")
    say(f"simulated: age, sex, height, tall; planted: {PLANTED} variants, and a shift of up to {max(SHIFTS):g} cm by ancestry")


def _read(folder: Path, elsewhere: set[str]) -> People:
    """The persons of the site folder that ``ancestry`` wrote, without those in ``elsewhere``."""
    with (folder / "persons.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    rows = [row for row in table if row["id"] not in elsewhere]
    ids = [row["id"] for row in rows]
    source = open_source(folder / "genotypes.bed")
    place = {sample: i for i, sample in enumerate(source.samples)}
    blocks = list(source.blocks([place[i] for i in ids], Selection(), 256))
    keys = tuple(key for block in blocks for key in block.keys)
    dosage = np.concatenate([block.dosage for block in blocks]).T
    return People(ids, [row["population"] for row in rows], [row["ancestry"] for row in rows], keys, dosage, len(table) - len(rows))


def _common(a: People, b: People) -> tuple[list[str], list[tuple[str, str]], npt.NDArray[np.int8]]:
    """The variants that both sites have under one rsID with the same two alleles: rsIDs, (ALT, REF), and dosages (persons of both sites,
    variants).

    A/T and C/G are excluded, because their alleles do not show the strand. The files have different orders.
    """
    index = {key.id: i for i, key in enumerate(b.keys)}
    names, alleles, left, right, turned = [], [], [], [], []
    for i, key in enumerate(a.keys):
        j = index.get(key.id)
        if j is None or key.alt == key.ref.translate(_SWAP):
            continue
        other = b.keys[j]
        if {key.ref, key.alt} == {other.ref, other.alt}:
            names.append(key.id)
            alleles.append((key.alt, key.ref))
            left.append(i)
            right.append(j)
            turned.append(key.alt != other.alt)
    dosage = b.dosage[:, right]
    dosage = np.where((dosage != MISSING) & np.array(turned, bool), 2 - dosage, dosage)
    return names, alleles, np.concatenate([a.dosage[:, left], dosage]).astype(np.int8)


def _frequency(dosage: npt.NDArray[np.int8]) -> Floats:
    """(variants,) frequency of ALT among called alleles."""
    called = dosage != MISSING
    return np.asarray(np.where(called, dosage, 0).sum(0) / np.maximum(2 * called.sum(0), 1), np.float64)


def _plant(a: People, b: People, rng: np.random.Generator) -> tuple[Floats, list[dict[str, Any]]]:
    """Genetic effects (persons of both sites,) in cm, of standard deviation ``GENETIC_SD``, and the planted variants. An allele's effect is
    normal with variance proportional to 1 / (2p(1 - p)), so that the explained variance does not depend on the frequency p."""
    names, alleles, dosage = _common(a, b)
    p = _frequency(dosage)
    candidates = np.flatnonzero(np.minimum(p, 1 - p) >= MIN_MAF)
    if len(candidates) < PLANTED:
        raise InputError(f"genotypes: {len(candidates)} variants are common in both studies, {PLANTED} are needed; get the original files.")
    chosen = np.sort(rng.choice(candidates, PLANTED, replace=False))
    p, planted_dosage = p[chosen], dosage[:, chosen]
    g = np.where(planted_dosage == MISSING, 0.0, planted_dosage - 2 * p)
    raw = rng.normal(0, 1, PLANTED) / np.sqrt(2 * p * (1 - p))
    effects = np.round(raw * GENETIC_SD / float((g @ raw).std()), 4)
    rows = zip(chosen.tolist(), effects.tolist(), p.tolist(), strict=True)
    planted = [
        {"id": names[j], "effect_allele": alleles[j][0], "other_allele": alleles[j][1], "effect_cm": e, "frequency": round(f, 6)}
        for j, e, f in rows
    ]
    return np.asarray(g @ effects, np.float64), planted


def _write(folder: Path, site: str, site_people: People, height: Floats, tall: Any, age: Floats, sex: Any) -> None:
    rows = [(i, f"{h:.2f}", t, p) for i, h, t, p in zip(site_people.ids, height, tall, site_people.populations, strict=True)]
    write_table(folder / "persons.csv", ("id", "height", "tall", "population"), rows)
    clinical = [(i, f"{a:.1f}", s) for i, a, s in zip(site_people.ids, age, sex, strict=True)]
    write_table(folder / "clinical.csv", ("id", "age", "sex"), clinical)
    write_manifest(
        folder,
        f"{ancestry.TITLES[site]}, thinned by the authors of flashpca, public data (no licence stated); simulated trait; match by rsID",
        f'variants = {{ path = "genotypes.bed", build = "{ancestry.BUILDS[site]}" }}',
        'clinical = { path = "clinical.csv" }',
        "[policy]",
        "min_count = 1 # these genotypes are public; a hospital omits this key, and 5 applies",
    )


DATASET = Dataset(
    name="trait",
    about="HapMap3 and 1000 Genomes phase 1 with a simulated height: 40 planted variants, age, sex, and a shift by ancestry",
    homepage=ancestry.DATASET.homepage,
    licence=ancestry.DATASET.licence,
    sources=ancestry.DATASET.sources,
    build=build,
)
