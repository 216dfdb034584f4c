"""Random augmentation of training images, sampled separately for each image.

    change = augmentation(study.training.augment, seed=seed)       # of the site and round
    batch = change(batch, ids, epoch)                              # changes image and mask only

A draw follows from (seed, epoch, the person's id, which of the person's images) alone, so neither the order of persons nor the size of a
batch changes it, and it is the same on every engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch

from fedml.cohort.images.transforms import random
from fedml.seeds import derive_seed
from fedml.study.imaging import Augment, OwnTransform

Batch = Mapping[str, torch.Tensor]
Change = Callable[[Batch, Sequence[str], int], dict[str, torch.Tensor]]


_NONE = Augment()


def augmentation(spec: Augment, named: Sequence[OwnTransform] = (), *, seed: int) -> Change | None:
    """The function that augments a batch of the persons ``ids`` in an epoch; None if ``spec`` and ``named`` change nothing."""
    # Stains change when a tile is read (``cohort/slides``).
    if not named and (spec == _NONE or spec.model_copy(update={"stain": 0.0}) == _NONE):
        return None
    pipelines = {keys: random(spec, keys, named=named) for keys in (("image",), ("image", "mask"))}

    def change(batch: Batch, ids: Sequence[str], epoch: int) -> dict[str, torch.Tensor]:
        if "image" not in batch:
            return dict(batch)
        keys = ("image", "mask") if "mask" in batch else ("image",)
        out, before = {key: torch.empty_like(batch[key]) for key in keys}, Counter[int]()
        for at, row in enumerate(batch["image_person"].tolist()):
            drawn = derive_seed("augment", seed, epoch, ids[row], before[row]) % 2**32
            before[row] += 1
            changed = pipelines[keys].set_random_state(drawn)({key: batch[key][at] for key in keys})
            for key in keys:
                out[key][at] = torch.as_tensor(changed[key]).to(out[key].dtype)
        return {**batch, **out}

    return change
