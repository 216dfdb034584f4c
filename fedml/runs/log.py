"""A run's folder: the complete record, written while the run proceeds.

    RUN/study.json          canonical JSON
    RUN/events.jsonl        one JSON object a line: start, agreed, round, end (``fedml.runs.events``)
    RUN/model.safetensors   learned arrays and preprocessing constants
    RUN/counts.safetensors  the counts of the last evaluation, as each site sent them: SITE/PART/NAME, of a subgroup SITE/test@LABEL/NAME
    RUN/received.safetensors  the same byte for byte, of sites that signed them; counts.safetensors has grouped histograms spread out
    RUN/panel.tsv           the shared variants (contig, position, id, ref, alt), if there are any
    RUN/layout.json         image shape and number of variants
    RUN/examples/           pictures of predictions, of sites that declare their images public
    RUN/gwas.tsv.gz         of an association study: summary statistics, their index and metadata; manhattan.svg, qq.svg
    RUN/outcomes.json       of an analysis of outcomes: all results; outcomes.html, tables (.tsv) and plots of them
    RUN/steps.jsonl         of an analysis: its steps, and RUN/sums.bin the sums that the sites sent
    RUN/shared.safetensors  of an association study: the variants that it works with, and the sites' genotype counts
    RUN/frequencies.tsv.gz  of a study of allele frequencies: counts by population and sex, and their index
    RUN/genes.tsv.gz        of tests of genes: their table; qq.svg; annotation, of the study

Progress display, MLflow tracking and reports read this folder, so a run does not depend on them.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from fedml.errors import InputError
from fedml.runs.events import Event, from_row, to_row
from fedml.study.sources import FOLDER, provide_folder
from fedml.study.study import Study, parse_study

if TYPE_CHECKING:
    import torch


OUTCOMES_JSON, OUTCOMES_PAGE = "outcomes.json", "outcomes.html"
OUTCOMES_FILES = (OUTCOMES_JSON, OUTCOMES_PAGE, "curves.tsv", "tests.tsv", "cox.tsv", "glm.tsv", "meta.tsv", "table1.csv", "table1.md",
                  "curves.svg", "forest.svg", "propensity.tsv", "balance.tsv", "treatment.tsv", "standardised.tsv")  # fmt: skip
FREQUENCIES_TABLE = "frequencies.tsv.gz"
FREQUENCIES_FILES = (FREQUENCIES_TABLE, f"{FREQUENCIES_TABLE}.tbi")
GWAS_TABLE, MANHATTAN, QQ = "gwas.tsv.gz", "manhattan.svg", "qq.svg"
GENES_TABLE = "genes.tsv.gz"
GWAS_FILES = (GWAS_TABLE, f"{GWAS_TABLE}.tbi", f"{GWAS_TABLE}-meta.yaml", MANHATTAN, QQ, "meta.json")
EVENTS, STUDY, MODEL, PANEL, LAYOUT = "events.jsonl", "study.json", "model.safetensors", "panel.tsv", "layout.json"
EXAMPLES = "examples"
STEPS, SUMS, SHARED = "steps.jsonl", "sums.bin", "shared.safetensors"
UNFINISHED = "unfinished.safetensors"
COUNTS = "counts.safetensors"
RECEIVED = "received.safetensors"


def study_of(run: Path) -> Study:
    """The study of a run's folder; its own code, if it has some, can be loaded from now on.

    Raises:
        OSError: the file cannot be read. InputError: it is no valid study.
    """
    provide_folder(run / FOLDER)
    return parse_study((run / STUDY).read_text(encoding="utf-8"))


def plain(value: Any) -> Any:
    """JSON has no NaN: an undefined metric is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def emit(run: Path, event: Event) -> None:
    """Appends one event to the run's log, with the time (Unix seconds): its own if it has one, or now.

    Raises:
        OSError: the disk is full; the log then ends with the event before, not within this one.
    """
    write_line(run, line_of(replace(event, time=event.time or time.time())))


def line_of(event: Event) -> str:
    """The line of an event, which has its time."""
    return json.dumps(plain(to_row(event)), allow_nan=False)


def write_line(run: Path, line: str) -> None:
    """Appends a line (``line_of``) to the run's log.

    Raises:
        OSError: the disk is full; the log then ends with the line before, not within this one.
    """
    with open(f"{run}/{EVENTS}", "ab", buffering=0) as file:
        before, data = file.seek(0, os.SEEK_END), memoryview(f"{line}\n".encode())
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(before)
            raise


def read_log(run: Path, start: int = 0, *, strict: bool = False) -> tuple[list[Event], int]:
    """Complete events from byte ``start`` on, and where the next one will begin.

    Args:
        strict: refuse unknown events and fields (``fedml.runs.events.from_row``); otherwise unknown events are skipped.

    Raises:
        InputError: an event is not in the format of a run; the message names file, event and field. ValueError: a line is not JSON.
    """
    rows, end = read_events(run, start)
    schema = _schema(run)
    try:
        events = [event for row in rows if (event := from_row(row, schema=schema, strict=strict)) is not None]
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{run / EVENTS}: is not in the format of a run ({error}); use the unchanged file of the run.") from error
    return events, end


def _schema(run: Path) -> int:
    """The version of a run's log; 0 if its first line does not state one."""
    try:
        with (run / EVENTS).open("rb") as file:
            first = json.loads(file.readline() or b"{}")
    except (FileNotFoundError, ValueError):
        return 0
    found = first.get("schema", 0) if isinstance(first, dict) else 0
    return found if type(found) is int and found >= 0 else 0


Kind = TypeVar("Kind", bound=Event)


def last(events: Sequence[Event], missing: Kind) -> Kind:
    """The last event of the kind of ``missing``; ``missing`` if there is none."""
    return next((e for e in reversed(events) if isinstance(e, type(missing))), missing)


def read_events(run: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Complete lines from byte ``start`` on as JSON objects, and the position of the next line; ``read_log`` gives events."""
    try:
        with (run / EVENTS).open("rb") as file:
            file.seek(start)
            text = file.read()
    except FileNotFoundError:
        return [], start
    whole = text[: text.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], start + len(whole)


def write_whole(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Writes a file completely or not at all, with the permissions ``mode`` less the process's umask."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def save_counts(run: Path, counts: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> None:
    """Saves site -> its counts of the last evaluation, from which every final metric follows."""
    from safetensors.numpy import save

    write_whole(run / COUNTS, save({f"{site}/{key}": np.ascontiguousarray(v) for site, own in counts.items() for key, v in own.items()}))


def save_received(run: Path, received: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> None:
    """Saves the counts of the last evaluation byte for byte as they came, of sites that signed them; no file if none did."""
    from safetensors.numpy import save

    arrays = {f"{site}/{key}": np.ascontiguousarray(v) for site, own in received.items() for key, v in own.items()}
    if arrays:
        write_whole(run / RECEIVED, save(arrays))


def load_counts(run: Path) -> dict[str, dict[str, dict[str, npt.NDArray[Any]]]]:
    """part (or ``test@LABEL``) -> site -> counts by name; empty if the run saved none."""
    from safetensors.numpy import load_file

    out: dict[str, dict[str, dict[str, npt.NDArray[Any]]]] = {}
    for key, value in load_file(run / COUNTS).items() if (run / COUNTS).exists() else ():
        site, part, name = key.split("/", 2)
        out.setdefault(part, {}).setdefault(site, {})[name] = value
    return out


def save_model(
    run: Path, learned: Mapping[str, torch.Tensor], constants: Mapping[str, torch.Tensor], image_shape: tuple[int, ...], panel: bytes
) -> None:
    """Saves everything needed to build and load the model. ``panel`` is ``fedml.cohort.variants.model.to_text``."""
    from safetensors.torch import save

    variants = panel.count(b"\n")
    write_whole(run / PANEL, panel)
    write_whole(run / LAYOUT, json.dumps({"image_shape": list(image_shape), "variants": variants}).encode())
    write_whole(run / MODEL, save({k: v.detach().contiguous() for k, v in {**learned, **constants}.items()}))


def save_unfinished(run: Path, learned: Mapping[str, torch.Tensor], constants: Mapping[str, torch.Tensor]) -> None:
    """Saves the weights after the last complete round of a run that does not come to its end; ``[model] start`` takes such a file."""
    from safetensors.torch import save

    write_whole(run / UNFINISHED, save({k: v.detach().contiguous() for k, v in {**learned, **constants}.items()}))


def load_model(run: Path) -> tuple[dict[str, torch.Tensor], tuple[int, ...], bytes]:
    """(arrays, image shape, panel) of a saved run."""
    from safetensors.torch import load_file

    layout = json.loads((run / LAYOUT).read_text())
    return load_file(run / MODEL), tuple(layout["image_shape"]), (run / PANEL).read_bytes()


def saved_window(arrays: Mapping[str, Any]) -> tuple[float, float] | None:
    """The window of raw intensities that a run's sites agreed on, from its saved arrays; None if the study has no percentiles."""
    low, high = arrays.get("preprocess.image.window", (None, None))
    return None if low is None or high is None else (float(low), float(high))
