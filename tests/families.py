"""Families who do not exist, as genotypes: parents drawn in Hardy-Weinberg equilibrium, children by Mendel's first law, variants unlinked.

dosage, family = families(random, frequency, count=300, children=3)  # (persons, variants) int8: father, mother, children, of each family
"""

from __future__ import annotations

from typing import Any

import numpy as np


def families(random: np.random.Generator, frequency: Any, count: int, children: int) -> tuple[Any, Any]:
    """Dosages (persons, variants), and the family of each person (persons,)."""
    parents = (random.random((count, 2, 2, len(frequency))) < frequency).astype(np.int8)  # family, parent, haplotype, variant
    people = [parents.sum(2)]
    for _ in range(children):
        pick = random.integers(0, 2, (count, 2, len(frequency)), dtype=np.int8)
        people.append(np.where(pick == 0, parents[:, :, 0], parents[:, :, 1]).sum(1, keepdims=True, dtype=np.int8))
    dosage = np.concatenate(people, axis=1).reshape(count * (2 + children), len(frequency)).astype(np.int8)
    return dosage, np.repeat(np.arange(count), 2 + children)
