"""The server's part of ``fedml frequencies``: allele counts by population and sex from every site, summed into one table.

    counts (agreement) -> each block of variants -> frequencies.tsv.gz

A site withholds what is about few of its persons (``fedml.cohort.variants.cells``); the table says how many sites' numbers each of its
own is the sum of.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid

from fedml.cohort.variants.cells import AC, AN, HEMIZYGOTES, HOMOZYGOTES, WITHHELD, Group
from fedml.cohort.variants.frequency import Counts, alleles, reported
from fedml.errors import RunError
from fedml.runs.events import Frequencies, Step
from fedml.runs.log import FREQUENCIES_TABLE, emit
from fedml.strategies.agreement.agree import agree
from fedml.strategies.agreement.step import Traffic, take
from fedml.strategies.frequencies.table import Rows, Writer, table_order
from fedml.strategies.rounds import agreed_event, check_reporter
from fedml.study.study import Study
from fedml.wire.records import Phase


def frequencies(study: Study, grid: Grid, run: Path) -> Path:
    """Runs the whole study and writes the table and its index to the folder ``run``; returns the table's path.

    Raises:
        RunError: the sites' variants cannot be harmonised, a site stopped answering, or sent numbers that contradict each other.
    """
    plan = study.frequencies
    assert plan is not None  # noqa: S101 - the command has checked
    began = time.monotonic()
    agreement = agree(study, grid, check_reporter(run), train=False)
    shared = agreement.shared
    assert shared is not None  # noqa: S101 - the study has variants
    agreement = replace(agreement, nodes={node: site for node, site in agreement.nodes.items() if site in shared.flips})
    emit(run, replace(agreed_event(agreement, disclosures=None, parameters=0), image_shape=[]))  # images are not read
    order = table_order(shared.keys)
    traffic = Traffic()
    left_out, withheld, written = Counter[str](), 0, 0
    with Writer(run / FREQUENCIES_TABLE, study, agreement.build, list(agreement.nodes.values())) as out:
        for number, start in enumerate(range(0, len(order), plan.block)):
            chosen = order[start : start + plan.block]
            replies = take(study, grid, agreement.part(chosen), Phase.FREQUENCIES, number, {}, traffic)
            told = {site: sums["alleles"] for site, sums in replies.items()}
            for site, table in told.items():
                _check(site, table, plan.groups(), agreement.counts[site][:, chosen])
            rows = pooled(told, partial=plan.partial)
            few = np.minimum(rows.counts[0, AC], rows.counts[0, AN] - rows.counts[0, AC])
            # A variant without a told copy is not listed: that it is in the panel at all may be because few persons carry it.
            lacking = (rows.withheld[0] > 0) & (rows.sites[0] == 0)
            reasons = {"withheld by a site": lacking, "no copy is told": few < 1, f"fewer than {plan.min_ac} copies": few < plan.min_ac}
            kept = np.ones(len(chosen), bool)
            for reason, fails in reasons.items():
                left_out[reason] += int((kept & fails).sum())
                kept &= ~fails
            out.write([shared.keys[i] for i in chosen[kept]], rows.of(kept))
            withheld += int((rows.withheld[:, kept] > 0).any(0).sum())
            written += int(kept.sum())
            done = start + len(chosen)
            emit(run, Step(doing=f"variants {done} of {len(order)}", done=done, total=len(order), log=False))
    found = Frequencies(
        seconds=time.monotonic() - began, sites=traffic.rows, build=agreement.build, groups=plan.names(), variants=written,
        left_out={reason: count for reason, count in left_out.items() if count}, withheld=withheld,
    )  # fmt: skip
    emit(run, found)
    return run / FREQUENCIES_TABLE


def pooled(told: Mapping[str, Counts], *, partial: bool) -> Rows:
    """The sum of the sites' ``alleles`` (groups, 4, variants). A site that has no call of a variant does not count.

    A group has numbers where every site that has the variant tells them: who tells depends on the number of carriers, so the frequency at
    the others would be biased. With ``partial`` it has those of the sites that do. Homozygotes are only given where each of them tells
    them.
    """
    tables = np.stack(list(told.values()))  # (sites, groups, 4, variants)
    given, has = tables[:, :, AN] >= 0, (tables[:, :1, AN] != 0)
    known, withheld = given & (tables[:, :, AN] > 0), (~given & has).sum(0)
    if not partial:
        known &= withheld == 0
    counts = np.where(known[:, :, None], tables, 0).sum(0)
    homozygotes = tables[:, :, HOMOZYGOTES]
    counts[:, HOMOZYGOTES] = np.where((known & (homozygotes == WITHHELD)).any(0), WITHHELD, counts[:, HOMOZYGOTES])
    return Rows(counts, known.sum(0), withheld)


def _check(site: str, told: Counts, groups: list[Group], counts: Counts) -> None:
    """Raises ``RunError`` if the numbers of a site cannot be those of persons, or are others than in its genotype counts (7, variants)."""
    wrong = ((told < WITHHELD).any((0, 1))) | ((told[:, AC] < 0) != (told[:, AN] < 0)).any(0) | (told[:, AC] > told[:, AN]).any(0)
    wrong |= (2 * np.maximum(told[:, HOMOZYGOTES], 0) + told[:, HEMIZYGOTES] > told[:, AC]).any(0)
    place = {group: at for at, group in enumerate(groups)}
    for (population, sex), at in place.items():
        for above in {(-1, sex), (population, -1), (-1, -1)}:
            if above in place:
                more = place[above]
                wrong |= (told[at, AN] >= 0) & (told[more, AN] >= 0) & (told[more, :2] < told[at, :2]).any(0)
    if wrong.any():
        raise RunError(f"{site} sent allele counts that contradict each other; run again without it, and ask the site.")
    alt, called = alleles(counts)
    same = (told[0, AC] == alt) & (told[0, AN] == called)
    if not np.where(reported(counts), same, told[0, AN] <= 0).all():
        raise RunError(f"{site} sent other allele counts than in its genotype counts, its data changed during the run; run it again.")
