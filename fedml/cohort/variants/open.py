"""Opens a file of variants by its ending."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedml.errors import InputError

if TYPE_CHECKING:
    pass
from fedml.cohort.variants.model import Source


def open_source(path: Path) -> Source:
    """The file's source by its ending: ``.bed`` is PLINK 1, anything else VCF or BCF.

    Raises:
        InputError: there is no such file, or its header cannot be read.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; correct data.variants in site.toml.")
    if path.suffix == ".bed":
        from fedml.cohort.variants.plink import PlinkSource

        return PlinkSource(path)
    from fedml.cohort.variants.vcf import open_vcf

    try:
        return open_vcf(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); correct data.variants in site.toml.") from error
