"""First-order features: the distribution of a region's intensities, without their places.

Formulas and names are those of PyRadiomics 3.0.1 (van Griethuysen 2017, Cancer Research 77:e104); kurtosis is not the excess, which is 3
less (IBSI). Percentiles are interpolated linearly.
"""

from __future__ import annotations

import numpy as np

from fedml.cohort.radiomics.region import Region, entropy


def intensity_features(region: Region) -> dict[str, float]:
    """The features by name, in the units of the file. Energies are sums over voxels; the total one is times a voxel's volume."""
    x = region.values
    p10, p25, p50, p75, p90 = np.percentile(x, [10, 25, 50, 75, 90])
    mean, energy = x.mean(), float((x**2).sum())
    away = x - mean
    variance = float((away**2).mean())
    robust = x[(x >= p10) & (x <= p90)]
    share = np.bincount(region.levels[region.mask] - 1) / len(x)
    found = {
        "10Percentile": p10, "90Percentile": p90, "Energy": energy, "Entropy": entropy(share), "InterquartileRange": p75 - p25,
        "Kurtosis": (away**4).mean() / variance**2 if variance else 0.0, "Maximum": x.max(), "MeanAbsoluteDeviation": np.abs(away).mean(),
        "Mean": mean, "Median": p50, "Minimum": x.min(), "Range": x.max() - x.min(),
        "RobustMeanAbsoluteDeviation": np.abs(robust - robust.mean()).mean() if len(robust) else np.nan,
        "RootMeanSquared": np.sqrt(energy / len(x)), "Skewness": (away**3).mean() / variance**1.5 if variance else 0.0,
        "TotalEnergy": energy * float(np.prod(region.spacing)), "Uniformity": (share**2).sum(), "Variance": variance,
    }  # fmt: skip
    return {name: float(value) for name, value in found.items()}
