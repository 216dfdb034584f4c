"""The inputs of a cohort that a test knows to be there, as what they are."""

from __future__ import annotations

from typing import TypeVar

from fedml.cohort.images.images import Images
from fedml.cohort.inputs import Table
from fedml.cohort.persons import Cohort
from fedml.cohort.slides.cohort import Slides
from fedml.cohort.variants.model import Dosages

Kind = TypeVar("Kind")


def images_of(cohort: Cohort) -> Images:
    return _there(cohort.input("image", Images))


def slides_of(cohort: Cohort) -> Slides:
    return _there(cohort.input("image", Slides))


def dosages_of(cohort: Cohort) -> Dosages:
    return _there(cohort.input("variants", Dosages))


def clinical_of(cohort: Cohort) -> Table:
    return _there(cohort.input("clinical", Table))


def _there(value: Kind | None) -> Kind:
    assert value is not None
    return value
