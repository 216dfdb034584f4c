"""Images in words: what preprocessing does to them, and what it takes from their masks."""

from __future__ import annotations

from fedml.cohort.images.images import Images
from fedml.modalities import slides
from fedml.modalities.modality import Text
from fedml.study.cohort_section import ImageShape
from fedml.study.monai_transforms import is_random
from fedml.study.section import normal
from fedml.study.study import Study
from fedml.tasks.lost import lost_notes, lost_of_images


def lost_lines(value: Images, study: Study) -> list[str]:
    """What preprocessing takes from the masks of all of a site's persons, as sentences for this site."""
    shape = study.cohort.image
    if study.traits.label != "mask" or shape is None or shape.preprocess is None:
        return []
    if value.originals is None:
        return ["what preprocessing takes from the masks is known when all sites have agreed on the window; the run tells it"]
    scored = {number: normal(name) for number, name in enumerate(study.cohort.classes) if number}
    return lost_notes(scored, {"": lost_of_images(value.originals.lost, value.person)})


def unit_lines(value: Images) -> list[str]:
    """In which units the values are, as far as DICOM headers say; nothing where they say nothing."""
    if not value.units:
        return []
    text = ", ".join(f"{unit} ({count} {'image' if count == 1 else 'images'})" for unit, count in value.units)
    return [f"values: {text}" + ("; units differ: state [cohort.image] units or select one kind" if len(value.units) > 1 else "")]


def steps(image: ImageShape) -> list[str]:
    """What preprocessing does, one phrase each."""
    done = ["one series of a person, by the rules of the study"] if image.select is not None and not image.select.several else []
    done += [f"with {len(image.channel_files)} named channels"] if image.channel_files else []
    done += [f"values as {image.units}"] if image.units else []
    named = {"channels": "all, as channels", "mean": "their mean", "stack": "the frames, as slices"}
    several = named.get(str(image.volumes), f"number {image.volumes}")
    done += [] if image.volumes == "one" else [f"of several volumes {several}"]
    done += [f"reoriented to {image.orientation}"] if image.orientation else []
    done += [f"resampled to {' x '.join(f'{s:g}' for s in image.spacing_mm)} mm"] if image.spacing_mm else []
    done += [f"intensities {image.window[0]:g} to {image.window[1]:g} scaled to 0 to 1"] if image.window else []
    two = image.percentiles
    done += [f"percentiles {two[0]:g} and {two[1]:g} of all sites' training voxels scaled to 0 and 1"] if two else []
    cached = [transform.name for transform in image.transforms if not is_random(transform.name)]
    done += [f"changed by {', '.join(cached)}"] if cached else []
    drawn = [transform.name for transform in image.transforms if is_random(transform.name)]
    done += [f"in training changed at random by {', '.join(drawn)}"] if drawn else []
    if (patches := image.patches) is None:
        return [*done, f"cropped and padded to {' x '.join(map(str, image.size))}"]
    size = " x ".join(map(str, patches.size))
    share = f"{patches.foreground:g} of them centred on a class other than the background" if patches.foreground else "anywhere"
    even = ", each class alike often" if patches.balanced and patches.foreground else ""
    return [
        *done,
        f"kept in their own size, at least {size}; training is on patches of {size} ({share}{even}), evaluation on whole images",
    ]


def plan(study: Study) -> str:
    """What the plan says of the input."""
    if (tiles := slides.tiles_of(study)) is not None:
        return slides.plan(tiles, study.model.image.pooling)
    shape = study.cohort.image
    if shape is not None and (patches := shape.patches) is not None:
        return f"images{shape.rules}, in training {patches.per_step} patch(es) of {' x '.join(map(str, patches.size))} of each in a step"
    return "images" + (f" of {' x '.join(map(str, shape.size))}{shape.rules}" if shape else "")


def preparation(study: Study) -> Text:
    """How images are prepared, for a model card, and where the study says so."""
    image = study.cohort.image
    if image is None:
        return "", ()
    if image.tiles is not None:
        return slides.preparation(image.tiles), ("study.json#/cohort/image/tiles",)
    if image.preprocess is not None:
        return f"Images are {', '.join(steps(image))}.", ("study.json#/cohort/image",)
    size = " x ".join(map(str, image.size))
    return f"Images are read unchanged and must have {image.channels} x {size} values.", ("study.json#/cohort/image",)


def network(study: Study) -> str:
    """The network of images."""
    spec = study.model.image
    if spec.net == "mlp":
        return slides.network_words(study)
    text = f"image: {spec.net} with channels {', '.join(map(str, spec.channels))} and {spec.norm} norm"
    return text + (", a person's images combined by learned attention" if spec.pooling == "attention" else "")
