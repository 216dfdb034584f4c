"""The package that MONAI's attention needs, and that not every installation has."""

from __future__ import annotations

from importlib.util import find_spec

from fedml.errors import InputError


def need_einops(net: str) -> None:
    """Raises ``InputError`` if the package that MONAI's attention needs is not installed."""
    if find_spec("einops") is None:
        raise InputError(f'[model] net "{net}" needs the package einops at every site; pip install "fedml-cohorts[transformers]".')
