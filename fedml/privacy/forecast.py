"""Forecast of a private study for ``fedml check``: epsilon, noise multiplier, noise relative to the signal, and advice."""

from __future__ import annotations

import math

from fedml.privacy.claims import rounded_up
from fedml.privacy.releases import attacker_sentence, claims, metrics_multiplier, noise_multiplier, sampling
from fedml.study.study import Study


def forecast(study: Study) -> str:
    """The forecast as text, for unit ``site`` or ``patient``."""
    lines = _site(study) if study.privacy.unit == "site" else _patient(study)
    return "\n".join([*lines, f"Attacker    {attacker_sentence(study)}"])


def _site(study: Study) -> list[str]:
    plan, sites, rounds = study.privacy, len(study.federation.training), study.federation.rounds
    z = noise_multiplier(study, "")
    share = z / sites
    lines = [
        f"Cost        {claims(study)[''].sentence()}",
        f"            noise multiplier z = {z:.4g} for {rounds} rounds of {sites} sites",
        f"            noise in each coordinate of the mean update: z C / n = {share * plan.clipping_norm:.3g} (C = {plan.clipping_norm:g})",
        f"            for 1,000 parameters the noise has length {share * math.sqrt(1000):.2g} C, the mean update at most C",
    ]
    if share * math.sqrt(100) > 1:  # almost every model has more than 100 parameters
        lines += [
            "            A model cannot learn with this noise. Use more sites, because the noise decreases as 1 / n",
            f"            ({_enough(z)} sites reduce it to a tenth of C for 100 parameters), fewer rounds, a larger epsilon,",
            '            or [privacy] unit = "patient", whose noise decreases with the number of persons.',
        ]
    return lines


def _enough(z: float) -> int:
    """Number of sites with which the noise over 100 coordinates has a tenth of the length of the clipping norm."""
    return math.ceil(z * math.sqrt(100) / 0.1)


def _patient(study: Study) -> list[str]:
    plan, lines = study.privacy, []
    by_site = claims(study)
    for site, claim in by_site.items():
        if site in study.federation.evaluate_only:
            lines.append(f"            {site}: epsilon {rounded_up(claim.epsilon)}, for the counts of its test persons; it does not train")
            continue
        sampled, z = sampling(study, site), noise_multiplier(study, site)
        lines.append(
            f"            {site}: epsilon {rounded_up(claim.epsilon)}, noise multiplier {z:.4g}, sampling rate {sampled.rate:.3g} "
            f"({sampled.divisor:g} of about {plan.persons[site]} persons), {sampled.steps * study.federation.rounds} steps; noise in every "
            f"coordinate of a step's mean gradient: {z * plan.clipping_norm / sampled.divisor:.3g} (clipping norm {plan.clipping_norm:g})"
        )
    worst = max(by_site.values(), key=lambda c: c.epsilon)
    lines.insert(0, f"Cost        {worst.sentence()}")
    if plan.metrics == "private":
        lines.append(f"            noise multiplier of the counts behind each metric: {metrics_multiplier(study):.4g}")
    return lines
