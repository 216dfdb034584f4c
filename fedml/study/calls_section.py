"""What of a call is read: genotypes or dosages, and of which quality. Keys of ``[cohort.variants]``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedml.study.section import Section


class Calls(Section):
    """Genotypes or imputed dosages, and thresholds of quality that each site applies while it reads its file."""

    dosage: Literal["hard", "nearest", "any", "DS", "HDS", "GP"] = Field(
        default="hard",
        description="genotypes (hard; nearest: of BGEN and PGEN files, which have dosages, the nearest), or imputed dosages, of a VCF or "
        "BCF file from its field DS, HDS or GP, or, any, from the first of them that it declares; BGEN and PGEN files have one kind",
    )
    min_gq: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0, description="least genotype quality (GQ) of a call of a VCF or BCF file; lower, or none, is missing; 0: no threshold"
    )
    min_dp: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=0, description="least read depth (DP) of a call of a VCF or BCF file; lower, or none, is missing; 0: no threshold"
    )
    min_info: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="least imputation quality of a variant at a site (INFO R2, DR2 or INFO, else computed); 0: no threshold"
    )

    @property
    def fractions(self) -> bool:
        """True if dosages have fractions."""
        return self.dosage not in ("hard", "nearest")

    @property
    def qualified(self) -> bool:
        """True if a threshold of a call's or a variant's quality is set."""
        return bool(self.min_gq or self.min_dp or self.min_info)
