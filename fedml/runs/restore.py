"""The study and its trained model from a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedml.models.fusion import CohortModel
    from fedml.study.study import Study
from fedml.runs.log import load_model, study_of


def restore(run: Path) -> tuple[Study, CohortModel]:
    """The study and its trained model from a run's folder, ready to predict."""
    from fedml.modalities.layout import make_layout
    from fedml.models.fusion import build_model, load

    study = study_of(run)
    arrays, image_shape, panel = load_model(run)
    model = build_model(study, make_layout(study, image_shape, panel))
    load({k: v for k, v in model.state_dict().items() if v.is_floating_point()}, arrays)
    return study, model.eval()
