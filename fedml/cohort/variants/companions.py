"""The other files of a genotype file that is one of a set: ``.bed`` with ``.bim`` and ``.fam``, ``.pgen`` with ``.pvar`` and ``.psam``,
``.bgen`` with ``.sample``."""

from __future__ import annotations

from pathlib import Path


def companions(path: Path) -> list[Path]:
    """The files that belong to ``path``, whether they exist or not; a ``.sample`` only if it exists, because a ``.bgen`` may lack one."""
    if path.suffix == ".bed":
        return [path.with_suffix(".bim"), path.with_suffix(".fam")]
    if path.suffix == ".pgen":
        packed = path.with_suffix(".pvar.zst")
        return [
            packed if packed.exists() and not path.with_suffix(".pvar").exists() else path.with_suffix(".pvar"),
            path.with_suffix(".psam"),
        ]
    sample = path.with_suffix(".sample")
    return [sample] if path.suffix == ".bgen" and sample.exists() else []
