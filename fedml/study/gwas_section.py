"""``[gwas]``: an association of the target with each variant."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fedml.study import limits
from fedml.study.genes_section import Genes
from fedml.study.section import Section, without_unused

_GWAS_FIRST = ("covariates", "components", "first_pass_p", "firth", "block", "pca_spacing", "pca_min_maf", "pca_tolerance")


class Polygenic(Section):
    """``[gwas.polygenic]``: the tests on a chromosome are adjusted for what the rest of the genome predicts (``fedml.analytics.ridge``)."""

    block: Annotated[int, Field(ge=2, le=10_000)] = Field(
        default=100, description="consecutive variants of a block; with the covariates at most as many as a site has persons in a fold"
    )
    ridge: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1, max_length=20)] = Field(
        default=(0.01, 0.25, 0.5, 0.75, 0.99), description="ridge parameters, as shares of the variance that the variants explain"
    )
    folds: Annotated[int, Field(ge=2, le=20)] = Field(default=5, description="folds of a site's persons, drawn at the site")
    min_maf: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.01, description="least minor allele frequency, over all sites, of the variants in blocks"
    )


class Gwas(Section):
    """``[gwas]``: association of the target with each variant (``fedml gwas``): linear for a quantitative target, logistic for two classes.

    ``covariates``: clinical columns; ``components``: number of principal components of the genotypes, computed from sums of the sites.
    Every binary target is first tested by the score test; variants with p up to ``first_pass_p`` are fitted in full. Firth's penalty is
    used where a class or an allele is rare.
    """

    covariates: Annotated[tuple[str, ...], Field(max_length=100)] = Field(
        default=(), description="columns of [cohort.clinical] for which each test is adjusted"
    )
    components: Annotated[int, Field(ge=0, le=50)] = Field(
        default=4, description="principal components of the genotypes of all sites for which each test is adjusted; 0: none"
    )
    first_pass_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.05, description="two classes: variants with at most this p of the score test are fitted in full"
    )
    firth: Literal["auto", "never"] = Field(
        default="auto", description="two classes: auto uses Firth's penalised likelihood where a class or an allele is rare"
    )
    block: Annotated[int, Field(ge=1, le=1_000_000)] = Field(default=20_000, description="variants per message")
    pca_spacing: Annotated[int, Field(ge=0, le=2**33)] = Field(
        default=0, description="least distance in bases between two variants used for components; 0: all variants"
    )
    pca_min_maf: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.01, description="least minor allele frequency, over all sites, of variants used for components"
    )
    pca_tolerance: Annotated[float, Field(ge=1e-14, le=1e-3)] = Field(
        default=1e-8, description="largest angle to the exact components, radians"
    )
    min_mac: Annotated[float, Field(ge=0, le=1e9)] = Field(
        default=20.0,
        description="least number of minor alleles, over all sites, of a variant that is tested; of two classes that are not equally "
        "large, an allele counts as the effective number of persons divided by all persons; 0: no threshold",
    )

    min_sites: Annotated[int, Field(ge=0, le=limits.SITES)] = Field(
        default=0, description="least number of sites that have a variant which is tested; 0: every site"
    )
    intercept: Literal["auto", "site", "one"] = Field(
        default="auto", description="an intercept for each site, or one for all; auto: for each site if the target has two classes"
    )
    relatives: Literal["keep", "unrelated"] = Field(
        default="keep",
        description="keep: everyone is analysed, and how many have relatives is told where that is not few; unrelated: each site leaves "
        "out persons until no pair of its own has a kinship above max_kinship",
    )
    max_kinship: Annotated[float, Field(ge=0.0442, le=0.5)] = Field(
        default=0.0884, description="kinship (KING-robust) above which two persons of a site are relatives; 0.0884: second degree or closer"
    )
    polygenic: Polygenic | None = Field(
        default=None, description="whole-genome regression, for cohorts with relatives and for power; default: none"
    )

    genes: Genes | None = Field(default=None, description="tests of the rare variants of each gene (fedml genes); default: none")

    @model_validator(mode="after")
    def _of_genes(self) -> Self:
        if self.genes is not None and self.polygenic is not None:
            raise ValueError("[gwas.genes] with [gwas.polygenic] is not built: remove one of them, or write two studies")
        return self

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unused(self, dump(self), first=_GWAS_FIRST)
