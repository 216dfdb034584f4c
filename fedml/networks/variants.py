"""Networks on tables by name, including networks on variants; the proximal step of the elastic net.

    network = build_variant_network(study.model.variants, variants=20_000, outputs=16, groups=layout.groups)
    network(x)                                   # (persons, variants) float32, standardised -> (persons, outputs)

``linear`` and ``mlp`` are dense. ``genes`` gives each gene ``width`` numbers from its own variants by weights of their own, so a weight a
variant and number instead of one a variant and hidden unit; then ReLU, then a network over the genes' numbers with the hidden widths given
(van Hilten et al. 2021, Communications Biology 4:1094, GenNet's first layer).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedml.errors import InputError, nearest

if TYPE_CHECKING:
    pass

NETWORKS = ("linear", "mlp", "genes")


class TableSpec(Protocol):
    """The settings of a network on a table: ``fedml.study.study.TableNetwork``."""

    @property
    def net(self) -> str: ...
    @property
    def hidden(self) -> tuple[int, ...]: ...
    @property
    def dropout(self) -> float: ...


class VariantSpec(TableSpec, Protocol):
    """The settings of a network on variants, with features for each gene."""

    @property
    def width(self) -> int: ...


@final
class GeneLayer(nn.Module):
    """(persons, variants) -> (persons, genes x width): for each gene, ``width`` weighted sums of its variants, each with a bias.

    ``weight`` (variants, width), ``bias`` (genes, width); the output has one gene's numbers side by side. The weights begin as those of a
    linear layer whose inputs are the gene's variants. Sums run variant after variant, so bits do not depend on the number of threads.
    """

    def __init__(self, groups: Sequence[int], width: int) -> None:
        """``groups`` (variants,): the gene of each variant, from 0.

        Raises:
            ValueError: a gene is negative.
        """
        super().__init__()
        gene = np.asarray(groups, dtype=np.int64)
        if len(gene) and gene.min() < 0:
            raise ValueError("every variant must be in a group")
        size = np.bincount(gene)
        self.width = width
        self.genes = len(size)
        bound = torch.from_numpy(1 / np.sqrt(np.maximum(size, 1))).float()
        self.weight = nn.Parameter((torch.rand(len(gene), width) * 2 - 1) * bound[torch.from_numpy(gene)][:, None])
        self.bias = nn.Parameter((torch.rand(self.genes, width) * 2 - 1) * bound[:, None])
        # Bags in the order of genes, then features, then variants of the panel.
        variant = np.argsort(gene, kind="stable")
        begin = np.cumsum(size) - size
        bags = np.repeat(begin * width, width) + np.tile(np.arange(width), self.genes) * np.repeat(size, width)
        number = np.arange(width)[:, None]
        runs = [(variant[b : b + n][None].repeat(width, 0), number) for b, n in zip(begin, size, strict=True)]
        members = [(v.ravel(), (v * width + k).ravel()) for v, k in runs] or [(variant, variant)]
        self.gene: torch.Tensor
        self.order: torch.Tensor
        self.begin: torch.Tensor
        self.member: torch.Tensor
        self.place: torch.Tensor
        self.bag: torch.Tensor
        member, place = (np.concatenate(parts) for parts in zip(*members, strict=True))
        constants = {"gene": gene, "order": variant, "begin": begin, "member": member, "place": place, "bag": bags}
        for name, values in constants.items():  # they follow from the panel, so they are neither saved nor sent
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._sums(x, self.weight) + self.bias.flatten()

    def _sums(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        # embedding_bag over columns of persons is the fastest segment sum, without a (persons, variants, width) tensor.
        each = weight.flatten().gather(0, self.place)
        return functional.embedding_bag(self.member, x.t().contiguous(), self.bag, mode="sum", per_sample_weights=each).t()

    def weight_gradient(self, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """(variants, width): the weight's gradient, where ``g`` (persons, genes x width) is the output's."""
        with torch.enable_grad():
            weight = self.weight.detach().requires_grad_()
            found: torch.Tensor = torch.autograd.grad(self._sums(x.detach(), weight), weight, g)[0]
        return found

    def squared_norms(self, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """(persons,) float64: of each person's weight gradient. A gene's part is the product of two sums of squares."""
        inputs = functional.embedding_bag(self.order, x.t().double().square(), self.begin, mode="sum")
        return (inputs.t() * g.view(len(g), self.genes, self.width).double().square().sum(2)).sum(1)

    def own_gradients(self, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """(rows, variants, width): the weight gradient of every row."""
        return x[:, :, None] * g.view(len(g), self.genes, self.width)[:, self.gene]


def build_table_network(spec: TableSpec, inputs: int, outputs: int) -> nn.Module:
    """(persons, inputs) -> (persons, outputs): linear layers of the hidden widths with ReLU and dropout between them."""
    layers: list[nn.Module] = []
    for width in spec.hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU(), *([nn.Dropout(spec.dropout)] if spec.dropout else [])]
        inputs = width
    layers.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*layers) if len(layers) > 1 else layers[0]


def build_variant_network(spec: VariantSpec, variants: int, outputs: int, groups: Sequence[int] = ()) -> nn.Module:
    """The network on variants that ``spec.net`` names, (persons, variants) -> (persons, outputs).

    Args:
        groups: for ``genes``, (variants,) the gene of each panel variant, from 0 (``fedml.cohort.scores.genes.group``).

    Raises:
        InputError: the name is not known, or ``genes`` has no groups.
    """
    if spec.net not in NETWORKS:
        raise InputError(f'[model.variants] net "{spec.net}" is not known{nearest(spec.net, NETWORKS)}; one of: {", ".join(NETWORKS)}.')
    if spec.net != "genes":
        return build_table_network(spec, variants, outputs)
    if len(groups) != variants or not variants:
        raise InputError(
            f'[model.variants] net = "genes": genes are known for {len(groups)} of the {variants} variants; give all genes in '
            'genes = "FILE" (GFF3, GTF or BED).'
        )
    genes = GeneLayer(groups, spec.width)
    network = nn.Sequential()
    network.add_module("genes", genes)
    network.add_module("relu", nn.ReLU())
    if spec.dropout:
        network.add_module("dropout", nn.Dropout(spec.dropout))
    network.add_module("over", build_table_network(spec, genes.genes * spec.width, outputs))
    return network


def shrink(parameters: Mapping[str, nn.Parameter], amounts: Mapping[str, float]) -> None:
    """Soft thresholding in place of the named parameters: sign(p) max(|p| - amount, 0).

    After a step of plain SGD with the amount ``lr x l1`` this is proximal gradient descent on loss + l1 |p| (Parikh and Boyd 2014,
    Proximal Algorithms, sections 4.2 and 6.5.2); weight decay adds the other part of the elastic net. After steps of momentum or Adam it
    makes zeros as well, but where it ends is not that minimum.

    Raises:
        ValueError: there is no such parameter, or an amount is negative or not finite.
    """
    with torch.no_grad():
        for name, amount in amounts.items():
            if name not in parameters or not (math.isfinite(amount) and amount >= 0):
                raise ValueError(f"cannot threshold {name} by {amount}")
            parameters[name].copy_(functional.softshrink(parameters[name], amount))
