"""The analyses of outcomes by their names, over the sites or again from their recorded sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fedml.strategies.outcomes.describe import describe
from fedml.strategies.outcomes.glm import regress
from fedml.strategies.outcomes.survival import analyse_survival
from fedml.strategies.outcomes.work import Work

ANALYSES: Mapping[str, Callable[[Work], Path]] = {"survival": analyse_survival, "glm": regress, "describe": describe}
