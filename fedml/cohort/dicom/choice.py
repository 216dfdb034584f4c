"""Which of a person's series is the image, by the rules of the study (``fedml.study.series_section.Select``).

    made = choose(candidates, study.cohort.image.select, has_mask)
    made.taken, made.left                  # candidates; (candidate, why it is not the image)
    made.problem                           # None, or (reason, sentence) if the person has none or more than one

A study that states no rules takes the only series of a person as it is, and of several the only one that is no localizer and neither
derived nor secondary. Two that remain are never averaged and never drawn from: the person is excluded, and the site is told which they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from fedml.cohort.dicom.headers import About, Candidate
from fedml.cohort.images.reasons import Unusable
from fedml.study.series_section import Select

_LISTED = 12  # series in a sentence


class Choice(NamedTuple):
    """``taken``: the image, or with ``several`` the images; ``left``: every other series and why it is not."""

    taken: tuple[Candidate, ...]
    left: tuple[tuple[Candidate, str], ...]
    problem: tuple[Unusable, str] | None


def choose(found: Sequence[Candidate], rules: Select | None, has_mask: Callable[[Candidate], bool] | None = None) -> Choice:
    """The image among the series of a person.

    Args:
        rules: the study's, with the site's own names; None: the study states none.
        has_mask: whether a mask refers to a series; None: the study reads no masks. Of several series that the rules admit, the ones with
            a mask remain, if there are some.
    """
    if not found:
        return Choice((), (), (Unusable.NO_SERIES, "has no series whose description fits"))
    if rules is None and len(found) == 1:
        return Choice(tuple(found), (), None)
    stated = rules or Select()
    kept: list[Candidate] = []
    left: list[tuple[Candidate, str]] = []
    for candidate in found:
        why = "; ".join(_against(candidate.about, stated))
        left += [(candidate, why)] if why else []
        kept += [] if why else [candidate]
    if not stated.several:
        for narrowed, why in _narrowed(kept, stated, has_mask):
            left += [(candidate, why) for candidate in kept if candidate not in narrowed]
            kept = narrowed
    if not kept:
        return Choice((), tuple(left), (Unusable.NO_SERIES, f"has no series that the study selects: {_named(c for c, _ in left)}"))
    if len(kept) > 1 and not stated.several:
        text = f"has {len(kept)} series that the study selects, and one is an image of a person: {_named(kept)}"
        return Choice((), tuple(left), (Unusable.SEVERAL_SERIES, text))
    return Choice(tuple(kept), tuple(left), None)


def _narrowed(
    kept: Sequence[Candidate], rules: Select, has_mask: Callable[[Candidate], bool] | None
) -> Iterator[tuple[list[Candidate], str]]:
    """The series that remain after each rule that decides between several, and why the others do not."""
    now = list(kept)
    if len(now) > 1 and has_mask is not None and (drawn := [c for c in now if has_mask(c)]):
        now = drawn
        yield now, "has no mask, another one has"
    scores: dict[str, tuple[Callable[[About], float | str], str]] = {
        "most-slices": (lambda about: about.slices, "has fewer slices than another one"),
        "thinnest": (lambda about: -about.thickness if about.thickness else -1e9, "has thicker slices than another one"),
        "newest": (lambda about: about.when, "is older than another one"),
    }
    for name in rules.prefer:
        score, why = scores[name]
        if len(now) > 1:
            if name == "newest" and not all(c.about.when for c in now):
                continue  # an undated one may be the newest
            best = max(now, key=lambda c: score(c.about))
            now = [c for c in now if score(c.about) == score(best.about)]
            yield now, why


def _named(found: Iterator[Candidate] | Sequence[Candidate]) -> str:
    words = [candidate.about.words() for candidate in found]
    more = f" and {len(words) - _LISTED} more" if len(words) > _LISTED else ""
    return "; ".join(words[:_LISTED]) + more


def fits(text: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns fits the whole text; capitals and spaces around it do not matter."""
    return any(fnmatchcase(text.strip().casefold(), pattern.casefold()) for pattern in patterns)


def _against(about: About, rules: Select) -> Iterator[str]:
    """Every rule that the series breaks, in words."""
    if about.localizer and not rules.localizer:
        yield "is a localizer"
    if about.derived and not rules.derived:
        yield "is derived"
    if about.secondary and not rules.secondary:
        yield "is secondary"
    if rules.modality and about.modality not in rules.modality:
        yield f"its modality is {about.modality or 'not stated'}"
    if missing := [value for value in rules.image_type if value.upper() not in about.image_type]:
        yield f"its Image Type lacks {missing[0]}"
    if present := [value for value in rules.not_image_type if value.upper() in about.image_type]:
        yield f"its Image Type has {present[0]}"
    if rules.description and not fits(about.description, rules.description):
        yield "its description fits no pattern"
    if rules.not_description and fits(about.description, rules.not_description):
        yield "its description fits a pattern of not_description"
    if rules.kernel and not fits(about.kernel, rules.kernel):
        yield f"its kernel is {about.kernel or 'not stated'}"
    if rules.orientation and about.plane != rules.orientation:
        yield f"it is {about.plane or 'of unknown orientation'}"
    if rules.view and about.view not in rules.view:
        yield f"its view is {about.view or 'not stated'}"
    if rules.thickness_mm and not rules.thickness_mm[0] <= (about.thickness or -1) <= rules.thickness_mm[1]:
        yield f"its slices are {about.thickness:g} mm thick" if about.thickness else "its slice thickness is not stated"
    for name, stated, values in (
        ("echo time", rules.echo_time_ms, about.echoes), ("b-value", rules.b_value, about.b_values),
        ("phase", (min(rules.phase), max(rules.phase)) if rules.phase else (), about.phases),
    ):  # fmt: skip
        if stated and not any(stated[0] <= value <= stated[1] for value in values):
            yield f"it has no {name} that is asked for"
