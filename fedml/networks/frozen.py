"""A frozen encoder of tiles: a network by name without its last layer, with weights from a pinned file.

    encoder = build_encoder(study.cohort.image.tiles.encoder, 256, weights=Path("encoder.safetensors"), seed=study.study.seed)
    encoder.digest                       # SHA-256 of network, weights and preparation: part of the cache's key
    features = encoder(tiles)            # uint8 (tiles, 3, 256, 256) -> float16 (tiles, encoder.width)

Nothing of it is trained or sent. The features are the input of the network's last linear layer, as usual in transfer of learned features
(Razavian et al. 2014, "CNN features off-the-shelf", CVPR workshops).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedml.errors import InputError, nearest
from fedml.networks.image import NETWORKS
from fedml.networks.weights import arrays_of
from fedml.seeds import derive_seed
from fedml.study.sections import ImageNetwork
from fedml.study.tiles import Encoder

WHERE = "[cohort.image.tiles.encoder]"
FORMAT = 1  # increment when the features of the same tile change
_LARGEST = 8 * 2**30  # bytes of a file of weights
_OUTPUTS = 3  # of the last layer that is taken away
_COUNTERS = "num_batches_tracked"


class FrozenEncoder:
    """An encoder in evaluation mode. ``width``: features of a tile; ``digest``: 32 bytes, equal for equal features up to rounding."""

    def __init__(self, spec: Encoder, network: nn.Module, width: int, device: torch.device) -> None:
        self.width, self._network, self._device = width, network.eval().requires_grad_(False).to(device), device
        self._mean = torch.tensor(spec.mean, device=device).view(1, 3, 1, 1)
        self._spread = torch.tensor(spec.spread, device=device).view(1, 3, 1, 1)
        sha256 = hashlib.sha256(json.dumps([FORMAT, spec.net, spec.mean, spec.spread]).encode())
        for name, value in sorted(network.state_dict().items()):
            sha256.update(f"{name}:{tuple(value.shape)}:".encode() + value.detach().cpu().contiguous().numpy().tobytes())
        self.digest = sha256.digest()

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        """Features of ``tiles`` uint8 (tiles, 3, size, size), red, green and blue: float16 (tiles, width).

        Raises:
            InputError: a feature is no finite number in half precision.
        """
        with torch.inference_mode():
            x = torch.from_numpy(tiles).to(self._device).float() / 255
            out = self._network((x - self._mean) / self._spread).float().cpu().numpy()
        with np.errstate(over="ignore"):
            half: npt.NDArray[np.float16] = out.astype(np.float16)
        if not np.isfinite(half).all():
            most = np.abs(out[np.isfinite(out)]).max(initial=0)
            raise InputError(f"{WHERE}: gives features up to {most:.3g} or none at all; half precision ends at 65,504: check its weights.")
        return half


def check_encoder(spec: Encoder) -> None:
    """Raises ``InputError`` if no network has the encoder's name."""
    if spec.net not in NETWORKS:
        raise InputError(f'{WHERE} net "{spec.net}" is not known{nearest(spec.net, NETWORKS)}; one of: {", ".join(NETWORKS)}.')


def build_encoder(
    spec: Encoder, size_px: int, *, weights: Path | None, seed: int, device: torch.device = torch.device("cpu"), key: str = "encoder"
) -> FrozenEncoder:
    """The encoder of a study.

    Args:
        weights: this site's file of weights; needed if the study pins one, ignored otherwise. seed: of the study, for an untrained encoder.
        key: how the site gives the file, for messages.

    Raises:
        InputError: there is no file, it is not the pinned one, or its weights do not fit the network.
    """
    check_encoder(spec)
    network, width = _headless(spec, size_px)
    if spec.sha256:
        _load(network, spec, weights, key)
    elif spec.untrained:
        _random_weights(network, seed)
    return FrozenEncoder(spec, network, width, device)


# --- inside


def _headless(spec: Encoder, size_px: int) -> tuple[nn.Module, int]:
    """The network whose last linear layer is an identity, and that layer's number of inputs.

    Pretrained networks have batch norm, which in evaluation mode treats each tile alone.
    """
    with torch.random.fork_rng(devices=[]):
        network = NETWORKS[spec.net](ImageNetwork(norm="batch"), (3, size_px, size_px), _OUTPUTS)
    name, last = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear) and m.out_features == _OUTPUTS][-1]
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())
    return network, last.in_features


def _random_weights(network: nn.Module, seed: int) -> None:
    """Uniform weights of the variance of He et al. 2015, from the bits of Philox, which do not change between versions of PyTorch: so
    all sites have the same encoder. Norms and biases start as usual."""
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.ndim < 2:
                value.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            bits = np.random.Philox(derive_seed("encoder", seed, name)).random_raw(value.numel())
            bound = (6 / value[0].numel()) ** 0.5
            uniform = (np.asarray(bits) >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - 1
            value.copy_(torch.from_numpy(uniform.reshape(value.shape) * np.float32(bound)))


def _load(network: nn.Module, spec: Encoder, path: Path | None, key: str) -> None:
    if path is None:
        raise InputError(f"{WHERE} pins weights with SHA-256 {spec.sha256[:12]}.., and this site names no file; give its path as {key}.")
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path}: has more than {_LARGEST:,} bytes, the limit of a file of weights.")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {key} names it.") from error
    if (found := hashlib.sha256(data).hexdigest()) != spec.sha256:
        raise InputError(
            f"{path}: is not the file that the study pins: its SHA-256 is {found[:12]}.., {WHERE} has {spec.sha256[:12]}..; get that file."
        )
    given, wanted = arrays_of(data, str(path)), network.state_dict()
    lacking = [name for name in wanted if name not in given and not name.endswith(_COUNTERS)]
    if lacking:
        raise InputError(
            f'{path}: lacks {len(lacking)} of {len(wanted)} weights of net "{spec.net}", such as {lacking[0]}'
            f"{nearest(lacking[0], given)}; it has {', '.join(list(given)[:3])}..: name its network."
        )
    for name in wanted.keys() & given.keys():
        if wanted[name].shape != given[name].shape:
            shapes = f"{tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
            raise InputError(f'{path}: {name} is {shapes}, as net "{spec.net}" and tiles of this size need; name its network.')
        if not torch.isfinite(given[name]).all():
            raise InputError(f"{path}: {name} has a weight that is no finite number.")
    with torch.no_grad():
        for name, value in wanted.items():
            if name in given:
                value.copy_(given[name])  # in the network's type
