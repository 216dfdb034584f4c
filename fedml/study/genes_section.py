"""``[gwas.genes]``: tests of the rare variants of each gene together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedml.study.section import Section

LOSS_OF_FUNCTION = ("pLoF", "stop_gained", "frameshift_variant", "splice_acceptor_variant", "splice_donor_variant")
MISSENSE = ("missense", "missense_variant")
MOST_MASKS = 12


class Genes(Section):
    """``[gwas.genes]``: burden, SKAT, SKAT-O and ACAT-V of each gene's rare variants (``fedml genes``), with the covariates and components
    of ``[gwas]``. Such a study tests genes alone: sites refuse to test its variants one by one.

    Variants that few persons of a site carry are counted together, one column for each gene and kind of variant.
    """

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="SHA-256 of the annotation; file fills it")
    masks: Annotated[
        dict[
            Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,62}$")],
            Annotated[tuple[str, ...], Field(min_length=1, max_length=50)],
        ],
        Field(min_length=1, max_length=MOST_MASKS),
    ] = Field(
        default={"pLoF": LOSS_OF_FUNCTION, "pLoF_missense": LOSS_OF_FUNCTION + MISSENSE},
        description="name of a mask -> consequences, as the annotation writes them; a gene is tested once with each mask",
    )
    max_maf: Annotated[float, Field(gt=0, le=0.05)] = Field(
        default=0.01, description="largest frequency of ALT, over the sites that tell it, of a variant that counts as rare"
    )
    weights: Literal["beta", "flat"] = Field(
        default="beta", description="weight of a variant: (1 - frequency)^24, as the density of Beta(1, 25), or 1"
    )
    collapse: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=10, description="variants of a gene with at most this many ALT alleles over all sites are counted together"
    )
    min_alleles: Annotated[float, Field(ge=1, le=1e9)] = Field(
        default=20.0,
        description="least number of rare alleles of a gene that is tested with a mask; of two classes that are not equally large, an "
        "allele counts as the effective number of persons divided by all persons",
    )
    block: Annotated[int, Field(ge=1, le=10_000)] = Field(default=200, description="genes per message")
