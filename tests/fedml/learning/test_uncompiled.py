"""Training does without torch's compiler, whose import takes a process 1 to 2 s and 80 MB, and its steps are those of ``torch.optim``."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from fedml.learning.training import make_optimizer
from fedml.study.training_section import Training

KINDS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, {}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.5}, {}),
    "adam": (torch.optim.Adam, {}, {"fused": True}),
    "adamw": (torch.optim.AdamW, {}, {"fused": True}),
}


@pytest.mark.parametrize("name", KINDS)
def test_steps_are_those_of_torch(name: str) -> None:
    kind, options, more = KINDS[name]
    ours, theirs = (torch.nn.Linear(7, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    plan = Training.model_validate({"optimizer": name, "lr": 0.05, "weight_decay": 0.1, **options})
    both = [
        (ours, make_optimizer(plan, list(ours.parameters()))),
        (theirs, kind(theirs.parameters(), lr=0.05, weight_decay=0.1, **options, **more)),
    ]
    x = torch.randn(20, 7, generator=torch.Generator().manual_seed(1))
    for network, optimizer in both:
        for _ in range(5):
            optimizer.zero_grad()
            (network(x) ** 2).mean().backward()
            optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
        assert mine.requires_grad
        assert mine.grad is not None


def test_the_compiler_is_not_imported() -> None:
    code = (
        "import sys, torch\n"
        "from fedml.learning.training import make_optimizer\n"
        "from fedml.study.training_section import Training\n"
        f"for name in {list(KINDS)}:\n"
        "    weight = torch.nn.Parameter(torch.ones(3))\n"
        "    optimizer = make_optimizer(Training(optimizer=name), [weight])\n"
        "    optimizer.zero_grad(); (weight * weight).sum().backward(); optimizer.step()\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
