"""The model of a study: preprocessing, one encoder for each input, and fusion of the inputs that a person has.

    model = build_model(study, Layout(image_shape=(1, 28, 28), variants=0))
    output = model(cohort.batch(rows))      # (persons, classes) logits, or (persons, 1) in the target's unit

An input that a person or a whole site lacks is masked: its features are 0 and a presence bit says so. While training, inputs are
hidden at random (``input_dropout``), so the model learns to do without each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fedml.errors import InputError
from fedml.modalities.layout import Layout
from fedml.modalities.modality import require
from fedml.modalities.registry import modalities_of
from fedml.models.inference import infer
from fedml.networks.direct import direct
from fedml.networks.mil import GatedAttention, embed
from fedml.networks.outcome import outcome_layer
from fedml.networks.own import own_network
from fedml.networks.preprocess import TargetScale
from fedml.networks.segmentation import build_segmentation_network
from fedml.networks.variants import build_table_network
from fedml.seeds import derive_seed, torch_seed
from fedml.study.code_section import is_own
from fedml.study.parameters import check_parameters
from fedml.study.sections import TableNetwork
from fedml.study.study import Study
from fedml.tasks.registry import make_task
from fedml.tasks.several import Several

TILE_WIDTH = 64  # features of an image or tile for attention pooling


class CohortModel(nn.Module):
    """The model of a study. ``forward`` takes a batch of ``fedml.cohort.persons.Cohort.batch``.

    For segmentation it is one network on the images, and the answer (images, classes, *size) logits.
    """

    def __init__(self, study: Study, layout: Layout) -> None:
        super().__init__()
        plan = study.model
        self.inputs = study.cohort.inputs
        self.segmentation = study.traits.label == "mask"
        patches = None if study.cohort.image is None else study.cohort.image.patches
        self.window = plan.segmentation.window or (patches.size if patches is not None else ())
        if self.segmentation:
            spec, classes = plan.segmentation, len(study.cohort.classes)
            self.preprocess = nn.ModuleDict({m.name: require(m.preprocess, m, "preprocess")(study, layout) for m in modalities_of(study)})
            network = (
                own_network(study.code, spec, layout.image_shape, classes)
                if is_own(spec.net)
                else build_segmentation_network(
                    spec.net,
                    layout.image_shape,
                    classes,
                    channels=spec.channels,
                    strides=spec.strides,
                    norm=spec.norm,
                    supervised=spec.deep_supervision,
                )
            )
            self.encoder = nn.ModuleDict({"image": network})
            return
        outcome = outcome_layer(study)
        outputs = make_task(study).outputs if outcome is None else 1
        alone = len(self.inputs) == 1
        width = outputs if alone else plan.width
        self.width = width
        self.input_dropout = 0.0 if alone else plan.input_dropout
        self.preprocess = nn.ModuleDict()
        self.encoder = nn.ModuleDict()
        self.pooling = GatedAttention(TILE_WIDTH, width) if "image" in self.inputs and plan.image.pooling == "attention" else None
        for modality in modalities_of(study):
            self.preprocess[modality.name] = made = require(modality.preprocess, modality, "preprocess")(study, layout)
            pooled = self.pooling is not None and modality.name == "image"
            encode = require(modality.encoder, modality, "encoder")
            self.encoder[modality.name] = encode(study, layout, made, TILE_WIDTH if pooled else width)
        self.head: nn.Module | None = None
        if not alone:
            self.head = build_table_network(
                TableNetwork(net="mlp" if plan.hidden else "linear", hidden=plan.hidden), (width + 1) * len(self.inputs), outputs
            )
        self.target = TargetScale() if study.traits.standardised else None
        self.outcome = outcome

    def _features(self, name: str, batch: Mapping[str, torch.Tensor], persons: int) -> tuple[torch.Tensor, torch.Tensor]:
        """((persons, width) features, (persons, 1) presence) of one input, 0 for a person without it."""
        if (ready := batch.get(ready_key(name))) is not None:
            present = batch[f"{name}_present"][:, None]
            if self.head is None:  # with a single input, every person of the cohort has it
                return self.encoder[name](ready), present
            if self.training and self.input_dropout:
                present = present * (torch.rand(persons, 1) >= self.input_dropout).to(present.device)
            return self.encoder[name](ready) * present, present
        if name not in batch:
            blank = torch.zeros(persons, self.width + 1, device=self._device())
            return blank[:, 1:], blank[:, :1]
        present, several = batch[f"{name}_present"][:, None], f"{name}_person" in batch
        if self.head is None and self.training and not several:  # with a single input, every person of the cohort has it
            return self.encoder[name](self.preprocess[name](batch[name])), present
        if self.training and self.input_dropout:
            present = present * (torch.rand(persons, 1) >= self.input_dropout).to(present.device)
        x = batch[name]
        if not several:
            return self.encoder[name](self.preprocess[name](x)) * present, present
        person = batch[f"{name}_person"]  # the row of each item's person; the items of a person are combined
        total = torch.zeros(persons, self.width, device=person.device)
        if not len(x):
            return total, present
        each = embed(lambda part: self.encoder[name](self.preprocess[name](part)), x)
        if self.pooling is not None:
            return self.pooling(each, person, persons) * present, present
        if len(x) == persons and torch.equal(person, torch.arange(persons, device=person.device)):  # one image for each person
            return each * present, present
        count = torch.bincount(person, minlength=persons).clamp_min(1)[:, None]
        return total.index_add(0, person, each.float()) / count * present, present

    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, batch: Mapping[str, Any]) -> Any:
        if self.segmentation:
            if isinstance(several := batch["image"], Several):  # images of different sizes, which come only in evaluation
                return several.each(lambda one: self.forward({"image": one}))
            x = self.preprocess["image"](batch["image"])
            network = self.encoder["image"]
            return network(x) if self.training or not self.window else infer(network, x, window=self.window)
        persons = next(len(batch[f"{n}_present"]) for n in self.inputs if f"{n}_present" in batch)
        features = [self._features(name, batch, persons) for name in self.inputs]
        out = features[0][0] if self.head is None else self.head(torch.cat([part for pair in features for part in pair], dim=1))
        last = self.target if self.outcome is None else self.outcome
        return out if last is None else last(out)


def ready_forward(model: CohortModel) -> Callable[[Mapping[str, Any]], Any]:
    """``model`` as a function of batches whose inputs are preprocessed already (``ready_key``), for a step of training: of a single input,
    which each person has, only its layers."""
    if model.head is not None:
        return model
    (name,), last = model.inputs, model.target if model.outcome is None else model.outcome
    key, encoder = ready_key(name), direct(model.encoder[name])
    return (lambda batch: encoder(batch[key])) if last is None else (lambda batch: last(encoder(batch[key])))


def ready_key(name: str) -> str:
    """The key in a batch of an input that is preprocessed already, with one item for each person."""
    return f"{name}_ready"


def build_model(study: Study, layout: Layout) -> CohortModel:
    """The study's model with its initial weights, which depend only on the study's seed.

    Raises:
        InputError: a network's name is not known, or the genes of the panel's variants are not, or the model would be too large.
    """
    try:
        check_parameters(study.model, study.cohort, layout.variants)
    except ValueError as error:
        raise InputError(f'study "{study.study.name}": {error}.') from error
    with torch_seed(derive_seed("initial weights", study.study.seed)):
        return CohortModel(study, layout)


def constants(model: nn.Module) -> dict[str, torch.Tensor]:
    """The preprocessing constants by name: set once from federated sums, never averaged."""
    return {k: v for k, v in model.state_dict().items() if k.startswith(("preprocess.", "target."))}


def learned(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that training changes and sites send: parameters and floating-point buffers (batch norm), sharing the model's memory."""
    return {k: v for k, v in model.state_dict().items() if v.is_floating_point() and not k.startswith(("preprocess.", "target."))}


def load(into: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Copies ``values`` into the tensors of the same names.

    Raises:
        ValueError: names or shapes differ.
    """
    if into.keys() != values.keys():
        raise ValueError(f"arrays differ by name: {sorted(into.keys() ^ values.keys())[:3]}")
    with torch.no_grad():
        for key, tensor in into.items():
            if tensor.shape != values[key].shape:
                raise ValueError(f"{key} is {tuple(values[key].shape)}, expected {tuple(tensor.shape)}")
            tensor.copy_(values[key])


def digest(values: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes in the order of the names: two runs with equal digests have equal bits."""
    out = hashlib.sha256()
    for key in sorted(values):
        array = values[key].detach().contiguous().numpy()
        out.update(f"{key}:{array.dtype}:{array.shape}:".encode())
        out.update(array.tobytes())
    return out.hexdigest()
