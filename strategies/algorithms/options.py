"""Options of the built-in algorithms as types of their parameters: range and meaning of each key of ``[strategy]``.

    def fedprox(mu: Mu = 0.01, weighting: ByWeighting = "persons") -> Algorithm: ...

``options_of`` reads them from an algorithm's function, for the checks of a study and for the reference of keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from fedml.strategies.algorithms.algorithm import Weighting

ByWeighting = Annotated[
    Weighting,
    Field(description="weight of a site in the mean: its number of training persons, or equal for all; [privacy] unit site: equal"),
]
ServerLr = Annotated[float, Field(gt=0, description="learning rate of the server's step")]
ServerMomentum = Annotated[float, Field(ge=0, lt=1, description="fraction of the server's last step that is added; 0: none")]
FirstDecay = Annotated[
    float, Field(ge=0, lt=1, description="decay of the running mean of the sites' mean update; 0: the last update alone")
]
SecondDecay = Annotated[float, Field(ge=0, lt=1, description="decay of the running mean of squares of the sites' mean update")]
Adaptivity = Annotated[float, Field(gt=0, description="added to the root of the mean of squares; smaller: more adaptive")]
Mu = Annotated[float, Field(ge=0, description="factor mu of the proximal term mu/2 |w - w_round|^2 in each site's loss; 0: FedAvg")]


def options_of(name: str, make: Callable[..., Any]) -> type[BaseModel]:
    """The parameters of the algorithm ``name`` as a model: types, ranges, defaults and descriptions. It accepts no other key."""
    hints = get_type_hints(make, include_extras=True)
    fields: dict[str, Any] = {key: (hints[key], parameter.default) for key, parameter in inspect.signature(make).parameters.items()}
    return create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **fields)
