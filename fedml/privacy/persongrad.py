"""The sum of per-person gradients, each clipped to a norm over all parameters together, to which DP-SGD adds noise.

    found = clipped_gradient_sum(model, losses, clipping_norm=1.0, rows_of={"encoder.image": batch["image_person"]})
    found.total["head.weight"], found.norms             # the sum by parameter; every person's norm before clipping

A person's gradient is the gradient of that person's loss. A layer that runs over images has several rows per person, whose gradients are
summed before the norm is computed. There is one forward pass, and one backward pass to the layers' outputs, without the weights' gradients.
From a layer's inputs A and its outputs' gradients G of one person (one column per output position of each row or image), exactly:

    one column      norm |a| |g|; the clipped sum is one product over all persons                    linear layers, one row per person
    few columns     norm from the products of columns, (A'A) * (G'G); the sum by one weighted pass   deep convolutions, small maps
    many columns    the person's gradient G A' itself, stored; the sum is one product                other layers
    block per gene  norm from each gene's |a|^2 |g|^2; the sum by one weighted pass                  genes of variants
    other modules   the person's gradient by autograd, one person at a time

(Goodfellow 2015, arXiv:1510.01799; Rochette et al. 2019, arXiv:1912.06015; Bu et al. 2022, arXiv:2205.10683, also choose between the second
and the third by size.) So a wide layer needs no array of size persons x outputs x inputs. Batch norm, which mixes persons, must be refused
first (``refuse_shared_statistics``).

A person whose gradient is not finite contributes 0. If a norm is computed from products, cancelling columns could leave rounding errors
larger than the exact norm; therefore the norm is increased by CANCEL x |A| |G|, which is below 1e-6 of it unless columns cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fedml.errors import InputError
from fedml.networks.variants import GeneLayer
from fedml.privacy.convolution import convolution_weight, unfolded

CANCEL = 2e-5
_MAX_UNFOLDED = 2**19  # elements of one image's unfolded input; above it the convolution's backward pass, person by person, is faster
_PIECE = 128
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@dataclass(frozen=True)
class ClippedSum:
    """``total``: by parameter, float32; ``norms``: (persons,) float64 before clipping, not finite for an excluded person."""

    total: dict[str, torch.Tensor]
    norms: torch.Tensor


@dataclass(frozen=True)
class _Use:
    """One call of a layer: its input, the input's version counter, and the output's edge in autograd's graph."""

    x: torch.Tensor
    version: int
    edge: Any


@dataclass(frozen=True)
class _Group:
    """Persons (n,) with ``each`` rows in a layer's batch, and those rows (n * each,); both None: all persons, one row each."""

    persons: torch.Tensor | None
    rows: torch.Tensor | None
    each: int

    def pick(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, ...) -> (n * each, ...)."""
        return x if self.rows is None else x[self.rows]

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """(n * each, values, places) -> (n, values, each * places)."""
        return x if self.each == 1 else x.reshape(-1, self.each, *x.shape[1:]).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class _Later:
    """A weight whose clipped sum is computed at the end, from its layer's input and its output's gradient in the rows of a group."""

    name: str
    layer: Any
    x: torch.Tensor
    g: torch.Tensor  # (n * each, outputs, places)
    group: _Group


@dataclass
class _Found:
    """``squares``: squared norms so far, (persons,) float64; ``kept``: stored gradients, (n, numel) by name and group; ``later``: weights
    whose sum is computed at the end."""

    squares: torch.Tensor
    kept: list[tuple[str, torch.Tensor, _Group]] = field(default_factory=list)
    later: list[_Later] = field(default_factory=list)

    def keep(self, name: str, gradients: torch.Tensor, group: _Group) -> None:
        flat = gradients.flatten(1)
        self.add(_squares(flat), group)
        self.kept.append((name, flat, group))

    def add(self, squares: torch.Tensor, group: _Group) -> None:
        if group.persons is None:
            self.squares += squares
        else:
            self.squares.index_add_(0, group.persons, squares)


_ALL_PERSONS = _Group(None, None, 1)


def refuse_shared_statistics(model: nn.Module) -> None:
    """Checks that no layer lets a person's data affect another person's gradient, or a buffer that would be sent without noise.

    Raises:
        InputError: the model has batch norm, or a norm with running statistics.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or getattr(module, "track_running_stats", False):
            raise InputError(
                f'[model.image] norm: layer "{name}" ({type(module).__name__}) mixes persons, so that the influence of one person cannot '
                'be bounded; set [model.image] norm = "group".'
            )


def clipped_gradient_sum(
    model: nn.Module,
    losses_of: Callable[[], torch.Tensor],
    *,
    clipping_norm: float,
    rows_of: Mapping[str, torch.Tensor] | None = None,
) -> ClippedSum:
    """Sum over persons of gradient x min(1, clipping_norm / norm), the norm over all trainable parameters together.

    ``losses_of`` runs the model once and returns (persons,) losses, each of which depends on one person only. A layer whose name equals or
    begins with a key of ``rows_of`` runs over rows, where row i belongs to person ``rows_of[key][i]``; other layers have one row per
    person, in order. No gradient is stored in the parameters.

    Raises:
        ValueError: the clipping norm is not positive and finite, or a layer ran over another number of rows than declared.
    """
    if not (math.isfinite(clipping_norm) and clipping_norm > 0):
        raise ValueError(f"the clipping norm must be positive and finite, not {clipping_norm}")
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with _recording(model) as uses:
        losses = losses_of()
    persons = len(losses)
    found = _Found(torch.zeros(persons, dtype=torch.float64, device=losses.device))
    layers, others = _sorted_out(model, trainable, uses, losses)
    _by_autograd(losses, trainable, others, found)
    if layers:
        groups = {"": [_ALL_PERSONS], **{key: _groups(person, persons) for key, person in (rows_of or {}).items()}}
        rows = {"": persons, **{key: len(person) for key, person in (rows_of or {}).items()}}
        gradients = torch.autograd.grad(losses, [use.edge for _, _, use in layers], torch.ones_like(losses))
        with torch.no_grad():
            for (name, layer, use), g in zip(layers, gradients, strict=True):
                key = next((k for k in groups if k and (name == k or name.startswith(f"{k}."))), "")
                if not len(use.x) == len(g) == rows[key]:
                    raise ValueError(f"layer {name} ran over {len(use.x)} rows, not {rows[key]}")
                if use.x._version != use.version:
                    raise ValueError(f"the input of layer {name} was modified after the layer had read it")
                _layer(f"{name}." if name else "", layer, use.x, g, groups[key], found)
    with torch.no_grad():
        norms = found.squares.sqrt()
        # A norm of 1e300 gives a factor of almost 0. A person with a norm that is not finite is excluded with all rows, because 0 x NaN is
        # NaN.
        factor = torch.where(torch.isfinite(norms), clipping_norm / norms.clamp_min(clipping_norm), 0.0)
        dropped = None if bool(torch.isfinite(norms).all()) else ~torch.isfinite(norms)
        total: dict[str, torch.Tensor] = {}
        for name, flat, group in found.kept:
            scale, excluded = _share(group, factor, dropped)
            part = scale.to(flat.dtype) @ (flat if excluded is None else flat.masked_fill(excluded[:, None], 0.0))
            _put(total, name, part.view_as(trainable[name]))
        for item in found.later:
            _put(total, item.name, _weighted_sum(item, *_share(item.group, factor, dropped)))
        total = {name: total[name] if name in total else torch.zeros_like(p) for name, p in trainable.items()}
    return ClippedSum(total, norms)


@contextmanager
def _recording(model: nn.Module) -> Iterator[dict[str, list[_Use]]]:
    """Within the block, records every call of a layer for which this module has a rule, by the layer's name."""
    uses: dict[str, list[_Use]] = {}

    def watch(name: str) -> Any:
        def record(_: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            if not output.requires_grad:
                return None
            x = arguments[0]
            # The edge, not the output: an in-place activation would replace the output in the graph. In a view it would rewrite the graph
            # including the edge, so a view is copied.
            uses.setdefault(name, []).append(_Use(x.detach(), x._version, torch.autograd.graph.get_gradient_edge(output)))
            return output.clone() if output._is_view() else None

        return record

    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if _has_rule(m)]
    try:
        yield uses
    finally:
        for handle in handles:
            handle.remove()


def _has_rule(module: nn.Module) -> bool:
    if isinstance(module, _CONVOLUTIONS) and type(module) in _CONVOLUTIONS:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) in (nn.Linear, nn.GroupNorm, nn.LayerNorm, GeneLayer, *_INSTANCE_NORMS)


def _sorted_out(
    model: nn.Module, trainable: Mapping[str, nn.Parameter], uses: Mapping[str, Sequence[_Use]], losses: torch.Tensor
) -> tuple[list[tuple[str, Any, _Use]], list[str]]:
    """The layers with a rule that are called once and whose parameters affect ``losses`` only there; and the names of all other parameters
    that affect the losses."""
    nodes, users = _graph(losses)
    layers, covered = [], set()
    for name, module in model.named_modules():
        parameters, calls = list(module.parameters(recurse=False)), uses.get(name, ())
        if parameters and len(calls) == 1 and calls[0].edge.node in nodes and all(users.get(id(p)) == 1 for p in parameters):
            layers.append((name, module, calls[0]))
            covered |= {id(p) for p in parameters}
    return layers, [name for name, p in trainable.items() if id(p) in users and id(p) not in covered]


def _graph(losses: torch.Tensor) -> tuple[set[Any], dict[int, int]]:
    """The nodes of autograd's graph of ``losses``, and the number of nodes that use each leaf, by the leaf's ``id``."""
    nodes: set[Any] = set()
    users: dict[int, int] = {}
    ahead = [losses.grad_fn] if losses.grad_fn is not None else []
    while ahead:
        node = ahead.pop()
        if node in nodes:
            continue
        nodes.add(node)
        for after, _ in node.next_functions:
            if after is not None:
                leaf = getattr(after, "variable", None)
                if leaf is None:
                    ahead.append(after)
                else:
                    users[id(leaf)] = users.get(id(leaf), 0) + 1
    return nodes, users


def _by_autograd(losses: torch.Tensor, trainable: Mapping[str, nn.Parameter], names: Sequence[str], found: _Found) -> None:
    """Gradients of the parameters ``names``, one person at a time: exact for every kind of module, but slow."""
    if names:
        wanted = [trainable[n] for n in names]
        each = [torch.autograd.grad(loss, wanted, retain_graph=True, materialize_grads=True) for loss in losses]
        for name, gradients in zip(names, zip(*each, strict=True), strict=True):
            found.keep(name, torch.stack(gradients), _ALL_PERSONS)


def _groups(person: torch.Tensor, persons: int) -> list[_Group]:
    """Groups of persons with equal numbers of rows; persons without rows are in no group."""
    if len(person) == persons and torch.equal(person, torch.arange(persons, device=person.device)):
        return [_ALL_PERSONS]
    order = torch.argsort(person, stable=True)
    count = torch.bincount(person, minlength=persons)
    begin = count.cumsum(0) - count
    out = []
    for each in torch.unique(count).tolist():
        if each:
            members = torch.nonzero(count == each)[:, 0]
            out.append(_Group(members, order[(begin[members, None] + torch.arange(each, device=person.device)).flatten()], each))
    return out


def _layer(prefix: str, layer: Any, x: torch.Tensor, g: torch.Tensor, groups: Sequence[_Group], found: _Found) -> None:
    """Adds the contribution of a layer's parameters to ``found``. ``x``: its input, ``g``: its output's gradient, both (rows, ...)."""
    if isinstance(layer, nn.Linear):
        g = g[:, :, None] if g.dim() == 2 else g.flatten(1, -2).transpose(1, 2)
    elif isinstance(layer, _CONVOLUTIONS):
        g = g.flatten(2)
    if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        for group in groups:
            _weight(f"{prefix}weight", layer, group.pick(x), group.pick(g), group, found)
        bias, weight = g.sum(2) if g.shape[2] > 1 else g[:, :, 0], None
    elif isinstance(layer, GeneLayer):
        for group in groups:
            _genes(f"{prefix}weight", layer, group.pick(x), group.pick(g), group, found)
        bias, weight = g, None
    else:
        over = list(range(1, g.dim() - len(layer.normalized_shape)) if isinstance(layer, nn.LayerNorm) else range(2, g.dim()))
        product = _normalised(layer, x).mul_(g)
        bias, weight = (g.sum(over), product.sum(over)) if over else (g, product)
    for name, rows in (("bias", bias), ("weight", weight)):
        if rows is not None and getattr(layer, name) is not None:
            for group in groups:
                picked = group.pick(rows)
                found.keep(prefix + name, picked if group.each == 1 else picked.reshape(-1, group.each, *picked.shape[1:]).sum(1), group)


def _normalised(layer: Any, x: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, nn.GroupNorm):
        return functional.group_norm(x, layer.num_groups, eps=layer.eps)
    if isinstance(layer, nn.LayerNorm):
        return functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    return functional.instance_norm(x, eps=layer.eps)


def _weight(name: str, layer: Any, x: torch.Tensor, g: torch.Tensor, group: _Group, found: _Found) -> None:
    """Adds the weight of a linear layer or a convolution, for the rows of a group; methods: see the module's docstring."""
    outputs, inputs = layer.weight.shape[0], layer.weight[0].numel()
    columns = group.each * g.shape[2]
    # Two ways to each person's norm: products of inputs and gradients (quadratic in the columns, in float64, and a second backward pass),
    # or the gradients themselves. The first is faster only with far fewer columns than weights.
    if 4 * columns * (inputs + outputs) < inputs * outputs or (columns == 1 and isinstance(layer, nn.Linear)):
        a, b = group.gather(unfolded(layer, x)), group.gather(g)
        a2, b2 = _squares(a.flatten(1)), _squares(b.flatten(1))
        if columns > 1:
            a, b = a.double(), b.double()
            products = (a.transpose(1, 2) @ a).mul_(b.transpose(1, 2) @ b).sum((1, 2))
            found.add(products.clamp_min(0.0) + CANCEL**2 * a2 * b2, group)
        else:
            found.add(a2 * b2, group)
        found.later.append(_Later(name, layer, x, g, group))
    elif isinstance(layer, nn.Linear) or inputs * g.shape[2] <= _MAX_UNFOLDED:
        found.keep(name, torch.bmm(group.gather(g), group.gather(unfolded(layer, x)).transpose(1, 2)), group)
    else:
        pairs = zip(torch.split(x, group.each), torch.split(g, group.each), strict=True)
        found.keep(name, torch.stack([convolution_weight(layer, inputs_, outputs_) for inputs_, outputs_ in pairs]), group)


def _genes(name: str, layer: GeneLayer, x: torch.Tensor, g: torch.Tensor, group: _Group, found: _Found) -> None:
    """Adds the weight of a gene layer, for the rows of a group. Gradients of several rows of a person may cancel, so they are computed."""
    if group.each == 1:
        found.add(layer.squared_norms(x, g), group)
        found.later.append(_Later(name, layer, x, g[:, :, None], group))
    else:
        each = layer.own_gradients(x, g)
        found.keep(name, each.view(-1, group.each, *each.shape[1:]).sum(1), group)


def _squares(flat: torch.Tensor) -> torch.Tensor:
    """(n, numel) -> (n,) float64: squared norms, from float32 norms of short pieces unless values are near the limits of float32."""
    whole = flat.shape[1] // _PIECE * _PIECE
    pieces = flat[:, :whole].reshape(len(flat), -1, _PIECE)
    norms = torch.cat([torch.linalg.vector_norm(pieces, dim=2), torch.linalg.vector_norm(flat[:, whole:], dim=1, keepdim=True)], dim=1)
    norm: torch.Tensor = torch.linalg.vector_norm(norms, dim=1, dtype=torch.float64)
    if not bool(((norm > 1e-9) & (norm < 1e15)).all()):  # squares may have exceeded the range of float32
        norm = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    return norm.square()


def _put(total: dict[str, torch.Tensor], name: str, part: torch.Tensor) -> None:
    """Adds ``part``, which no other code uses, in place."""
    total[name] = total[name].add_(part) if name in total else part


def _share(group: _Group, factor: torch.Tensor, dropped: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The factors of a group's persons, and a mask of the excluded persons (None: no person is excluded)."""
    if group.persons is None:
        return factor, dropped
    return factor[group.persons], None if dropped is None else dropped[group.persons]


def _weighted_sum(item: _Later, scale: torch.Tensor, excluded: torch.Tensor | None) -> torch.Tensor:
    """The sum over rows of gradient x the person's ``scale``, in the weight's shape."""
    x, g, each = item.x, item.g, item.group.each
    scale = scale if each == 1 else scale.repeat_interleave(each)
    if excluded is not None:
        rows = ~(excluded if each == 1 else excluded.repeat_interleave(each))
        x, g, scale = x[rows], g[rows], scale[rows]
    g = (g.double() * scale[:, None, None]).to(x.dtype)  # in float64, because a large gradient is multiplied by a small factor
    if isinstance(item.layer, GeneLayer):
        return item.layer.weight_gradient(x, g[:, :, 0])
    if not isinstance(item.layer, nn.Linear):
        return convolution_weight(item.layer, x, g)
    total: torch.Tensor = g[:, :, 0].t() @ x if x.dim() == 2 else torch.einsum("rot,rti->oi", g, x.flatten(1, -2))
    return total
