"""``[federation]``: the sites of a study, its rounds, and how their answers travel."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fedml.errors import nearest
from fedml.study import limits
from fedml.study.lateness import late_problem
from fedml.study.section import Name, Section, without_unused

Wire = Literal["float32", "float16", "bfloat16", "int8"]


class Federation(Section):
    """``[federation]``: the roster, in the order in which replies are added; number of rounds; quorum and timeout of a round; the sites
    that only test."""

    sites: Annotated[tuple[Name, ...], Field(min_length=1, max_length=limits.SITES, description="names of the sites that take part")]
    rounds: Annotated[int, Field(ge=0, le=100_000, description="rounds of training; 0: evaluate the initial model only")] = 10
    quorum: Annotated[
        int, Field(ge=0, le=limits.SITES, description="sites that must answer each round, or the run fails; 0: all sites")
    ] = 0
    timeout: Annotated[int, Field(ge=1, le=604_800, description="seconds that a round waits for answers")] = 600
    evaluate_only: Annotated[tuple[Name, ...], Field(max_length=limits.SITES)] = Field(
        default=(), description="sites of the roster that do not train: all their persons test the final model (external validation)"
    )
    late: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=0.0,
        description="a site that takes so many times its usual time (the median of its last five rounds) is late: the round ends without "
        "it once the quorum is there; 0: every site has the whole timeout",
    )
    late_seconds: Annotated[int, Field(ge=1, le=604_800)] = Field(
        default=30, description="with late: seconds before which no site is late; after timeout each is"
    )
    quorum_persons: Annotated[int, Field(ge=0, le=2**53)] = Field(
        default=0, description="training persons whose sites must answer each round, together with quorum, or the run fails"
    )

    wire: Wire = Field(
        default="float32",
        description="numbers of the updates that sites send, of 4, 2, 2 or 1 bytes; what rounding leaves out is added to the next",
    )

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unused(self, dump(self), first=("sites", "rounds", "quorum", "timeout"))

    @model_validator(mode="after")
    def _quorum(self) -> Self:
        if len(set(self.sites)) < len(self.sites):
            raise ValueError("a site is listed twice in sites")
        if self.quorum > len(self.training):
            which = "sites lists only" if not self.evaluate_only else "the sites that train are only"
            raise ValueError(f"quorum is {self.quorum} but {which} {len(self.training)}")
        if why := late_problem(self.late, self.late_seconds, self.timeout, "late_seconds" in self.model_fields_set):
            raise ValueError(why)
        return self

    @model_validator(mode="after")
    def _external(self) -> Self:
        for name in self.evaluate_only:
            if name not in self.sites:
                raise ValueError(f'evaluate_only names "{name}", which is not in sites{nearest(name, self.sites)}; add it to sites')
        if len(set(self.evaluate_only)) < len(self.evaluate_only):
            raise ValueError("a site is listed twice in evaluate_only")
        if self.rounds and not self.training:
            raise ValueError("evaluate_only names every site, so none trains; leave one out, or test a finished model with fedml evaluate")
        return self

    @property
    def training(self) -> tuple[str, ...]:
        """The sites that train, in the roster's order."""
        return tuple(site for site in self.sites if site not in self.evaluate_only)

    @property
    def needed(self) -> int:
        """Number of training sites that must answer each round."""
        return self.quorum or len(self.training)
