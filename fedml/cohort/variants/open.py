"""Opens a genotype file; the file extension selects the reader."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedml.errors import InputError

if TYPE_CHECKING:
    pass
from fedml.cohort.variants.model import Source


def open_source(path: Path) -> Source:
    """The source for ``path``: ``.bed`` is read as PLINK 1, ``.pgen`` as PLINK 2, ``.bgen`` as BGEN, any other as VCF or BCF.

    Raises:
        InputError: the file does not exist, or its header cannot be read.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; correct data.variants in site.toml.")
    if path.suffix == ".bed":
        from fedml.cohort.variants.plink import PlinkSource

        return PlinkSource(path)
    if path.suffix == ".pgen":
        from fedml.cohort.variants.pgen import PgenSource

        return PgenSource(path)
    if path.suffix == ".bgen":
        from fedml.cohort.variants.bgen import BgenSource

        return BgenSource(path)
    from fedml.cohort.variants.vcf import open_vcf

    try:
        return open_vcf(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); correct data.variants in site.toml.") from error
