"""Updates in fewer bytes with any of this project's algorithms: ``[federation] wire``.

A site sends the change of the model instead of the model, in the study's format (``fedml.wire.formats``), and keeps what rounding left out.
It is site state as SCAFFOLD's is: of the last round in which the site's reply was counted, so an update that was not counted is not made up
for. Only the model's arrays are in that format; further records of an algorithm are float32. Messages to a site are, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from fedml.contract.extras import Shapes
from fedml.errors import InputError
from fedml.strategies.algorithms.algorithm import Algorithm, Received, SiteEnd, SiteWork
from fedml.wire.formats import BYTES, decode, encode

LEFT_OUT = "left-out"


def _same(model: Shapes) -> Shapes:
    """Of each array of the model."""
    return model


def in_wire_format(algorithm: Algorithm, wire: str) -> Algorithm:
    """``algorithm`` whose sites send their updates in the format ``wire``.

    Raises:
        InputError: its server's part is a Flower strategy, which does not tell a site which of its rounds counted.
    """
    if algorithm.server is None:
        raise InputError(f'[federation] wire = "{wire}" is not built for Flower\'s strategies; set [strategy] name to another one.')

    def site(received: Received) -> SiteWork:
        inner, before = algorithm.site(received), received.kept.get(LEFT_OUT, {})

        def finish(trained: Mapping[str, torch.Tensor], steps: int) -> SiteEnd:
            end = inner.finish(trained, steps)
            update = {name: value.detach() - received.start[name] for name, value in trained.items()}
            update = {name: value + before[name] if name in before else value for name, value in update.items()}
            sent = encode(update, wire)
            left_out = {name: update[name] - value for name, value in decode(sent, wire).items()}
            return replace(end, keeps={**end.keeps, LEFT_OUT: left_out}, update=sent)

        return replace(inner, finish=finish)

    keeps = " and ".join(filter(None, [algorithm.words.keeps, "what rounding left out of its updates, until the run ends"]))
    leaves = f"{algorithm.words.leaves}; weights as their change in the round, {wire}, {BYTES[wire]} bytes a number in place of 4"
    return replace(
        algorithm, site=site, keeps={**algorithm.keeps, LEFT_OUT: _same}, words=replace(algorithm.words, keeps=keeps, leaves=leaves)
    )
