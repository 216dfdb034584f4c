"""`fedml-site score`: a polygenic score of each of this site's persons, from a scoring file. Nothing leaves the machine.

    scored = score_site(read_site(Path("site.toml")), Path("PGS000018_hmPOS_GRCh38.txt.gz"))
    write_scores(Path("scores.csv"), scored)
    print(show(scored))

Genotypes come from the site's packed cache. By position, and where the genotype file has an index, only the stretches around the weights
are read of it, so a score of few variants costs little in a file of many; else the file is read whole, once.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedml.clients.site.manifest import Site
from fedml.cohort.scores.scores import Matched, Scores, match, score
from fedml.cohort.scores.scoring_file import ADDITIVE, Scoring, read_scoring
from fedml.cohort.table import read_table
from fedml.cohort.variants.genotypes import read_variants
from fedml.cohort.variants.model import Dosages, Selection, Source
from fedml.cohort.variants.normalise import ENOUGH, NOTES, UNSURE, is_ambiguous
from fedml.cohort.variants.open import open_source
from fedml.errors import InputError
from fedml.runs.log import write_whole
from fedml.study.contigs import canonical_contig

By = Literal["position", "rsid"]
Missing = Literal["stated", "own"]
_REACH = 1000  # bases around a weight that are read too: an indel may stand elsewhere before it is left-aligned
_GAP, _STRETCHES = 10_000, 1000  # weights nearer than that are read together; at most so many stretches
_APART = 33  # positions are below 2^33
_FEW = 0.001  # of the matched, on the other strand: above it nobody believes A/T and C/G


@dataclass(frozen=True, eq=False)
class Scored:
    """``ids`` (persons,) of the persons table; ``scores`` NaN for who is not ``present`` in the genotype file. ``expected``: weights
    without a variant here that count by their frequency, and what they add to everybody's score. ``doubtful``: A/T and C/G are not
    believed."""

    site: str
    scoring: Scoring
    ids: tuple[str, ...]
    scores: Scores
    present: npt.NDArray[np.bool_]
    counts: dict[str, int]
    expected: tuple[int, float]
    doubtful: bool


def score_site(
    site: Site,
    scoring_file: Path,
    *,
    by: By = "position",
    missing: Missing = "stated",
    min_matched: float = 0.5,
    say: Callable[[str], None] = lambda _: None,
) -> Scored:
    """The score of each person of ``site``: the file's intercept and the sum of weight x copies of the effect allele.

    Args:
        missing: ``stated``: a genotype that is not known counts by the scoring file's frequency of the effect allele, and so does a weight
            whose variant is not here; where the file states none, as under ``own``. ``own``: by the frequency in this site's persons, and a
            weight whose variant is not here adds nothing, as in ``plink2 --score``.
        min_matched: share of the weights that must find their variant.

    Raises:
        InputError: a file cannot be used, the builds contradict, or too few weights find their variant.
    """
    data = site.manifest.data
    if data.variants is None:
        raise InputError(f"{site.file}: [data] has no variants, which a score is made of; add them.")
    own, path = data.variants, site.folder / data.variants.path
    scoring = read_scoring(scoring_file)
    match(scoring, (), own.build, by)  # builds and places, before anything large is read
    ids = tuple(str(i) for i in read_table(site.folder / data.persons).index)
    dosages = read_variants(
        path, ids, build=own.build, cache=site.state / "cache", memory_mb=own.memory_mb, say=say,
        selection=stretches(scoring, open_source(path)) if by == "position" else Selection(),
        reference=None if own.reference is None else site.folder / own.reference,
    )  # fmt: skip
    matched, build = _match(scoring, dosages, by)
    if matched.counts["matched"] < max(min_matched * len(scoring), 1):
        other = "rsid" if by == "position" else "position"
        raise InputError(
            f"{scoring_file}: {matched.counts['matched']} of its {len(scoring)} weights match a variant of {path}, --min-matched asks for "
            f"{min_matched:g}; see that both are of one build ({scoring.build or 'not stated'} and {dosages.build}), try --by {other}, "
            "or lower it."
        )
    variants, stated = len(dosages.keys), missing == "stated"
    found = score(dosages.dosage, matched, matched.alt_frequency(variants) if stated else None)
    expected = _expected(scoring, matched, dosages, build, by) if stated else (0, 0.0)
    total = np.where(dosages.present, found.total + expected[1], np.nan)
    scores = Scores(total, np.where(dosages.present, found.used, 0))
    return Scored(site.name, scoring, ids, scores, dosages.present, matched.counts, expected, build is None)


def _match(scoring: Scoring, dosages: Dosages, by: By) -> tuple[Matched, str | None]:
    """The matched weights, and the site's build as it was taken: None where that would let A/T and C/G be believed, though not everything
    is on one strand. Where all other SNPs (20 at least) are on the other strand, A/T and C/G are turned too, as between sites."""
    matched = match(scoring, dosages.keys, dosages.build, by)
    if by == "rsid":
        return matched, dosages.build
    alleles = [(dosages.keys[at].ref, dosages.keys[at].alt) for at in matched.at.tolist()]
    palindrome = np.array([is_ambiguous(*pair) for pair in alleles], dtype=bool)
    clear = sum(len(ref) == len(alt) == 1 for ref, alt in alleles) - int(palindrome.sum())
    if matched.counts["strand"] == clear >= ENOUGH:
        swapped = matched.swapped ^ palindrome
        return replace(matched, swapped=swapped, counts=matched.counts | {"swapped": int(swapped.sum())}), dosages.build
    unsure = dosages.notes is not None and bool(dosages.notes[NOTES.index(UNSURE)])
    if palindrome.any() and (unsure or matched.counts["strand"] > _FEW * len(matched.at)):
        return match(scoring, dosages.keys, None, by), None
    return matched, dosages.build


def stretches(scoring: Scoring, source: Source) -> Selection:
    """The regions that hold the weights, where ``source`` can go to a region; everything where it cannot.

    About 1,000 at most: weights that are nearer to each other are read with what lies between.
    """
    contigs = _contigs(source)
    if contigs is None:
        return Selection()
    placed = [(c, p) for c, p in zip(scoring.contig, scoring.position.tolist(), strict=True) if p and c in contigs]
    if not placed:
        return Selection()
    # Contig after contig on one line, so far apart that no stretch reaches from one into the next.
    names = sorted({contig for contig, _ in placed})
    number = {name: at << _APART for at, name in enumerate(names)}
    places = np.unique(np.array([number[contig] + position for contig, position in placed], dtype=np.int64))
    gaps = np.diff(places)
    most = _GAP if len(gaps) < _STRETCHES else max(_GAP, int(np.partition(gaps, -_STRETCHES)[-_STRETCHES]))
    cut = np.flatnonzero((gaps > most) | (np.diff(places >> _APART) > 0))
    begin, end = places[np.concatenate([[0], cut + 1])].tolist(), places[np.concatenate([cut, [len(places) - 1]])].tolist()
    here = (1 << _APART) - 1
    return Selection(
        tuple(f"{names[b >> _APART]}:{max((b & here) - _REACH, 1)}-{(e & here) + _REACH}" for b, e in zip(begin, end, strict=True))
    )


def _contigs(source: Source) -> set[str] | None:
    """Canonical names of the contigs that can be read by region; None where the file has no index."""
    import pysam

    from fedml.cohort.variants.bgzf import find_index
    from fedml.cohort.variants.vcf import VcfSource

    names = list(source.contigs)
    if isinstance(source, VcfSource):
        if not (source.binary or source.bgzip):
            return None
        try:
            index = find_index(source.path, *((".csi",) if source.binary else (".tbi", ".csi")))
            if not source.binary:
                with pysam.TabixFile(str(source.path), index=str(index)) as opened:
                    names = list(opened.contigs)
        except (InputError, OSError, ValueError):
            return None
    return {canonical_contig(name) for name in names}


def _expected(scoring: Scoring, matched: Matched, dosages: Dosages, build: str | None, by: By) -> tuple[int, float]:
    """How many weights have no variant here but a stated frequency, and what they add: as if that genotype were missing for everybody."""
    rest = np.ones(len(scoring), dtype=bool)
    rest[matched.row] = False
    repeated = matched.counts["duplicate"]
    while repeated:  # a second weight of a matched variant is none that lacks its variant
        rows = np.flatnonzero(rest)
        again = match(_rows(scoring, rows), dosages.keys, build, by)
        rest[rows[again.row]] = False
        repeated = again.counts["duplicate"]
    rest &= np.isfinite(scoring.frequency)
    copies = np.where(scoring.model == ADDITIVE, 2, 1) * scoring.frequency
    return int(rest.sum()), float((scoring.weight * copies)[rest].sum())


def _rows(scoring: Scoring, rows: npt.NDArray[np.int64]) -> Scoring:
    def some(texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(texts[row] for row in rows.tolist())

    return replace(
        scoring, rsid=some(scoring.rsid), contig=some(scoring.contig), position=scoring.position[rows], effect=some(scoring.effect),
        other=some(scoring.other), weight=scoring.weight[rows], frequency=scoring.frequency[rows], model=scoring.model[rows],
    )  # fmt: skip


def write_scores(path: Path, scored: Scored) -> None:
    """A CSV of ``id``, ``score`` and ``used`` (weights for which the person has a genotype), in the order of the persons table; the score
    is empty for who has no genotypes. It is there whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("id", "score", "used"))
    rows = zip(scored.ids, scored.scores.total.tolist(), scored.scores.used.tolist(), scored.present.tolist(), strict=True)
    table.writerows((person, repr(total) if there else "", used) for person, total, used, there in rows)
    try:
        write_whole(path, text.getvalue().encode())
    except OSError as error:
        path.with_name(f".{path.name}.partial").unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); give another --out.") from error


def show(scored: Scored) -> str:
    """What became of the weights and of the persons, in words."""
    n, counts = len(scored.scoring), scored.counts
    lines = [
        f"{scored.scoring.name} ({scored.scoring.build or 'build not stated'}): {n} weights",
        f"  matched    {counts['matched']} ({counts['matched'] / n:.1%}); of these swapped {counts['swapped']}, strand {counts['strand']}",
        f"  ambiguous  {counts['ambiguous']}" + (" (A/T or C/G of unknown strand, left out)" if counts["ambiguous"] else ""),
        f"  absent     {counts['absent']}" + (f", and with other alleles {counts['differ']}" if counts["differ"] else ""),
    ]
    if counts["duplicate"]:
        lines.append(f"  duplicate  {counts['duplicate']} (the first of each is taken)")
    if scored.doubtful:
        lines.append("  some SNPs are on the other strand, so no A/T or C/G is believed; give a file on the forward strand, or a reference")
    if scored.expected[0]:
        lines.append(
            f"  {scored.expected[0]} without a variant here count by their stated frequency: {scored.expected[1]:+.6g} for everybody"
        )
    without = int((~scored.present).sum())
    lines.append(f"{scored.site}: {len(scored.ids) - without} persons scored" + (f", {without} without genotypes" if without else ""))
    return "\n".join(lines)
