"""`fedml-site score`: a polygenic score of each person of the site, from a scoring file. Nothing is sent.

    scored = score_site(read_site(Path("site.toml")), Path("PGS000018_hmPOS_GRCh38.txt.gz"))
    write_scores(Path("scores.csv"), scored)
    print(show(scored))

Genotypes come from the site's packed cache. If variants are matched by position and the genotype file has an index, only the regions around
the weights are read, so that a score of few variants is fast in a file of many; otherwise the whole file is read once.
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
from fedml.cohort.sheet import read_table
from fedml.cohort.variants.alleles import is_ambiguous
from fedml.cohort.variants.genotypes import Genome, read_variants
from fedml.cohort.variants.model import Dosages, Selection, Source
from fedml.cohort.variants.normalise import ENOUGH, NOTES, UNSURE
from fedml.cohort.variants.open import open_source
from fedml.errors import InputError
from fedml.runs.log import write_whole
from fedml.study.contigs import canonical_contig

By = Literal["position", "rsid"]
Missing = Literal["stated", "own"]
_MARGIN_BASES = 1000  # read on both sides of a weight: an indel may be at another position before it is left-aligned
_MAX_GAP, _MAX_REGIONS = 10_000, 1000  # weights closer than _MAX_GAP bases are read as one region
_POSITION_BITS = 33  # of a number that joins contig and base position, which is below 2^31
_MAX_OTHER_STRAND = 0.001  # fraction of matched weights on the other strand above which A/T and C/G are excluded


@dataclass(frozen=True, eq=False)
class Scored:
    """The scores of a site. ``ids`` (persons,) of the persons table; ``scores`` are NaN for persons not ``present`` in the genotype file.
    ``expected``: the number of weights without a variant at the site that count by their stated frequency, and their sum, which is added to
    every score. ``doubtful``: A/T and C/G weights are excluded because strands differ."""

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
    """The score of each person of ``site``: the file's intercept plus the sum of weight x copies of the effect allele.

    Args:
        missing: how a missing genotype counts. ``stated``: by the scoring file's frequency of the effect allele; a weight without a variant
            at the site counts the same way; if the file states no frequency, as under ``own``. ``own``: by the frequency in this site's
            persons; a weight without a variant at the site adds nothing, as in ``plink2 --score``.
        min_matched: fraction of the weights that must match a variant.

    Raises:
        InputError: a file cannot be used, the builds differ, or too few weights match a variant.
    """
    data = site.manifest.data
    if data.variants is None:
        raise InputError(f"{site.file}: [data] has no variants, which a score needs; add variants to [data].")
    genotypes, path = data.variants, site.folder / data.variants.path
    scoring = read_scoring(scoring_file)
    match(scoring, (), genotypes.build, by)  # checks build and positions before a large file is read
    ids = tuple(str(i) for i in read_table(site.folder / data.persons, data.id).index)
    dosages = read_variants(
        path, ids, cache=site.state / "cache", memory_mb=genotypes.memory_mb, say=say,
        genome=Genome(genotypes.build, None if genotypes.reference is None else site.folder / genotypes.reference, strict=False),
        selection=stretches(scoring, open_source(path)) if by == "position" else Selection(),
    )  # fmt: skip
    matched, build = _match(scoring, dosages, by)
    if matched.counts["matched"] < max(min_matched * len(scoring), 1):
        other = "rsid" if by == "position" else "position"
        raise InputError(
            f"{scoring_file}: {matched.counts['matched']} of {len(scoring)} weights match a variant of {path}, --min-matched requires a "
            f"fraction of {min_matched:g}; check that both files have one build ({scoring.build or 'not stated'} and {dosages.build}), try "
            f"--by {other}, or lower --min-matched."
        )
    variants, stated = len(dosages.keys), missing == "stated"
    found = score(dosages.dosage, matched, matched.alt_frequency(variants) if stated else None)
    expected = _expected(scoring, matched, dosages, build, by) if stated else (0, 0.0)
    total = np.where(dosages.present, found.total + expected[1], np.nan)
    scores = Scores(total, np.where(dosages.present, found.used, 0))
    return Scored(site.name, scoring, ids, scores, dosages.present, matched.counts, expected, build is None)


def _match(scoring: Scoring, dosages: Dosages, by: By) -> tuple[Matched, str | None]:
    """The matched weights and the build used for matching. The build is None if strands differ within the file: then A/T and C/G weights
    are excluded. If all other SNPs (at least ``ENOUGH``) are on the other strand, A/T and C/G are flipped too, as between sites."""
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
    if palindrome.any() and (unsure or matched.counts["strand"] > _MAX_OTHER_STRAND * len(matched.at)):
        return match(scoring, dosages.keys, None, by), None
    return matched, dosages.build


def stretches(scoring: Scoring, source: Source) -> Selection:
    """The regions that contain the weights, if ``source`` can be read by region; else the selection of everything.

    At most about 1,000 regions: close weights are joined into one region.
    """
    contigs = _contigs(source)
    if contigs is None:
        return Selection()
    placed = [(c, p) for c, p in zip(scoring.contig, scoring.position.tolist(), strict=True) if p and c in contigs]
    if not placed:
        return Selection()
    # All contigs on one axis, with an offset for each contig that no region can span.
    names = sorted({contig for contig, _ in placed})
    number = {name: at << _POSITION_BITS for at, name in enumerate(names)}
    places = np.unique(np.array([number[contig] + position for contig, position in placed], dtype=np.int64))
    gaps = np.diff(places)
    most = _MAX_GAP if len(gaps) < _MAX_REGIONS else max(_MAX_GAP, int(np.partition(gaps, -_MAX_REGIONS)[-_MAX_REGIONS]))
    cut = np.flatnonzero((gaps > most) | (np.diff(places >> _POSITION_BITS) > 0))
    begin, end = places[np.concatenate([[0], cut + 1])].tolist(), places[np.concatenate([cut, [len(places) - 1]])].tolist()
    mask = (1 << _POSITION_BITS) - 1
    return Selection(
        tuple(
            f"{names[b >> _POSITION_BITS]}:{max((b & mask) - _MARGIN_BASES, 1)}-{(e & mask) + _MARGIN_BASES}"
            for b, e in zip(begin, end, strict=True)
        )
    )


def _contigs(source: Source) -> set[str] | None:
    """Canonical names of the contigs that can be read by region; None if the file has no index."""
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
    """The number of weights with a stated frequency but no variant at the site, and their expected sum: the genotype counts as missing for
    every person."""
    rest = np.ones(len(scoring), dtype=bool)
    rest[matched.row] = False
    repeated = matched.counts["duplicate"]
    while repeated:  # a second weight of a matched variant does not lack a variant
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
    """Writes a CSV file of ``id``, ``score`` and ``used`` (number of weights for which the person has a genotype), in the order of the
    persons table. The score is empty for a person without genotypes. The file is written completely or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("id", "score", "used"))
    rows = zip(scored.ids, scored.scores.total.tolist(), scored.scores.used.tolist(), scored.present.tolist(), strict=True)
    table.writerows((person, repr(total) if present else "", used) for person, total, used, present in rows)
    try:
        write_whole(path, text.getvalue().encode())
    except OSError as error:
        path.with_name(f".{path.name}.partial").unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); give --out another file.") from error


def show(scored: Scored) -> str:
    """A summary of the matched weights and the scored persons, as text."""
    n, counts = len(scored.scoring), scored.counts
    lines = [
        f"{scored.scoring.name} ({scored.scoring.build or 'build not stated'}): {n} weights",
        f"  matched    {counts['matched']} ({counts['matched'] / n:.1%}); of these swapped {counts['swapped']}, strand {counts['strand']}",
        f"  ambiguous  {counts['ambiguous']}" + (" (A/T or C/G of unknown strand, excluded)" if counts["ambiguous"] else ""),
        f"  absent     {counts['absent']}" + (f", and with other alleles {counts['differ']}" if counts["differ"] else ""),
    ]
    if counts["duplicate"]:
        lines.append(f"  duplicate  {counts['duplicate']} (the first of each is used)")
    if scored.doubtful:
        lines.append("  some SNPs are on the other strand, so A/T and C/G are excluded; give a file on the forward strand, or a reference")
    if scored.expected[0]:
        count, added = scored.expected
        lines.append(f"  {count} without a variant at this site count by their stated frequency: {added:+.6g} for every person")
    without = int((~scored.present).sum())
    lines.append(f"{scored.site}: {len(scored.ids) - without} persons scored" + (f", {without} without genotypes" if without else ""))
    return "\n".join(lines)
