"""A site that fails on purpose: the real ``fedml.clients.service.run_site`` with new data for each message, and a fault in it.

    python tests/faulty_site.py SITE PLAN OUTCOMES [leaky]

PLAN (JSON) lists the cases; each goes with one message, by phase and round. What a case names (a person, who stands in the data, in the
folder's and the files' names and in the exception's text) is in the plan, so the one who wrote it can look for it. OUTCOMES gets a line a
case: was the fault met, where, and did anything leave ``Gate.handle`` other than by its answer. ``leaky`` sends the exception's text.

A fault is one of: a file of the site's that cannot be used; an exception from a named function, ours or a library's; an exception at a
line of ours, any of those that an undisturbed message of the phase passes.
"""

from __future__ import annotations

import errno
import importlib
import inspect
import itertools
import json
import os
import random
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import numpy as np
from flwr.app import Context, Error, Message

from fedml.clients.gate.gate import Gate
from fedml.errors import InputError, Reason, SiteError

ROOT = Path(__file__).resolve().parent.parent
OURS = tuple(str(ROOT / name) + os.sep for name in ("fedml", "clients", "strategies"))
PERSONS = 100
Case = dict[str, Any]
Handle = Callable[[Gate, Message, Context], Message]
HANDLE = Gate.handle  # as it is, before anything is put around it

ALL, WITH_MODEL = ("describe", "statistics", "round", "evaluate"), ("round", "evaluate")
AGREED, TRAINED, COUNTED = ("statistics", *WITH_MODEL), ("round",), WITH_MODEL
# name -> (owner, attribute, phases that pass there, at which call at the latest)
PLACES: dict[str, tuple[str, str, tuple[str, ...], int]] = {
    "read_request": ("fedml.clients.gate.gate", "read_request", ALL, 1),
    "check_level": ("fedml.clients.gate.gate", "check_level", ALL, 1),
    "check_roster": ("fedml.clients.gate.gate", "check_roster", ALL, 1),
    "check_request": ("fedml.clients.gate.gate", "check_request", ALL, 1),
    "load_cohort": ("fedml.clients.gate.gate", "load_cohort", ALL, 1),
    "execute": ("fedml.clients.work.known", "execute", ALL, 1),
    "check_reply": ("fedml.clients.gate.gate", "check_reply", ALL, 1),
    "journal": ("fedml.clients.gate.journal:Journal", "append", ALL, 2),
    "read_site": ("fedml.clients.gate.gate", "read_site", ALL, 1),
    "read_table": ("fedml.clients.site.read", "read_table", ALL, 1),
    "read_labels": ("fedml.clients.site.read", "read_labels", ALL, 1),
    "part_of": ("fedml.clients.site.read", "part_of", ALL, PERSONS),
    "read_table of an input": ("fedml.modalities.clinical", "read_table", ALL, 1),
    "code_columns": ("fedml.modalities.clinical", "code_columns", ALL, 1),
    "read_variants": ("fedml.modalities.variants", "read_variants", ALL, 1),
    "read_images": ("fedml.modalities.image", "read_images", ALL, 1),
    "drop_unusable_persons": ("fedml.clients.site.read", "drop_unusable_persons", ALL, 1),
    "pyarrow.csv.read_csv": ("pyarrow.csv", "read_csv", ALL, 2),
    "numbers": ("fedml.cohort.clinical", "numbers", ALL, 1),
    "pysam.VariantFile": ("pysam", "VariantFile", ALL, 1),
    "numpy.stack": ("numpy", "stack", ALL, 1),
    "Path.open": ("pathlib:Path", "open", ALL, 1),
    "Cohort.count": ("fedml.cohort.persons:Cohort", "count", ALL, 2),
    "Cohort.rows": ("fedml.cohort.persons:Cohort", "rows", ALL, 1),
    "to_text": ("fedml.modalities.variants", "to_text", ("describe",), 1),
    "pack": ("fedml.clients.work.client", "pack", ALL, 1),
    "load_aligned": ("fedml.clients.work.client", "load_aligned", AGREED, 1),
    "from_text": ("fedml.clients.site.read", "from_text", AGREED, 1),
    "aligned": ("fedml.clients.site.read", "aligned", AGREED, 1),
    "align": ("fedml.cohort.persons", "align", AGREED, 1),
    "cohort_sums": ("fedml.clients.work.client", "cohort_sums", ("statistics",), 1),
    "build_model": ("fedml.clients.work.loaded", "build_model", WITH_MODEL, 1),
    "make_task": ("fedml.clients.work.loaded", "make_task", WITH_MODEL, 1),
    "load": ("fedml.clients.work.client", "load", WITH_MODEL, 2),
    "Cohort.batch": ("fedml.cohort.persons:Cohort", "batch", WITH_MODEL, 2),
    "CohortModel.forward": ("fedml.models.fusion:CohortModel", "forward", WITH_MODEL, 2),
    "torch.conv2d": ("torch.nn.functional", "conv2d", WITH_MODEL, 2),
    "torch.linear": ("torch.nn.functional", "linear", WITH_MODEL, 4),
    "evaluate": ("fedml.clients.work.client", "evaluate", COUNTED, 1),
    "task.counts": ("fedml.tasks.classification", "class_counts", COUNTED, 1),
    "add_counts": ("fedml.learning.training", "add_counts", COUNTED, 1),
    "train": ("fedml.clients.work.client", "train", TRAINED, 1),
    "derive_seed": ("fedml.clients.work.client", "derive_seed", TRAINED, 1),
    "make_optimizer": ("fedml.learning.training", "make_optimizer", TRAINED, 1),
    "task.loss": ("torch.nn.functional", "cross_entropy", TRAINED, 3),
    "backward": ("torch:Tensor", "backward", TRAINED, 3),
    "hook": ("fedml.strategies.algorithms.fedprox", "proximal_hook", TRAINED, 3),
    "optimizer.step": ("torch.optim:Adam", "step", TRAINED, 3),
}
BAD_DATA: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("cell", "label", "twice", "row", "encoding", "gone", "image", "genotypes", "manifest", "shape", "link"), ALL),
    "variant": ("describe",),  # agreed on before, the panel does not name it, and the message is answered
}


def text_of(case: Case) -> str:
    """A sentence with all that identifies the case's person."""
    return f"{case['given']} {case['family']}, born {case['born']} ({case['birthday']}), record {case['id']}, in {case['path']}"


def _loud(base: type[BaseException], case: Case) -> BaseException:
    """An exception that tells in each way in which one can: class, arguments, text, representation, attributes."""
    text = text_of(case)
    reported = {
        "__str__": lambda self: text,
        "__repr__": lambda self: f"<{text}>",
        "reason": text,
        "code": text,
        "__module__": case["family"],
    }
    return type(f"{case['given']}{case['family']}", (base,), reported)(text, case["id"])


def _silent(case: Case, error: Exception) -> BaseException:
    """An exception that has no text: asking for it raises another."""

    def reported(self: object) -> str:
        raise error

    return type(case["given"], (Exception,), {"__str__": reported, "__repr__": reported})(text_of(case))


def _caused(case: Case) -> BaseException:
    error = RuntimeError(case["id"])
    error.__cause__, error.__context__ = KeyError(text_of(case)), OSError(errno.EIO, case["given"], case["path"])
    error.add_note(text_of(case))
    return error


ERRORS: dict[str, Callable[[Case], BaseException]] = {
    "KeyError": lambda c: KeyError(c["id"], text_of(c)),
    "IndexError": lambda c: IndexError(text_of(c)),
    "ValueError": lambda c: ValueError(text_of(c)),
    "TypeError": lambda c: TypeError(text_of(c)),
    "RuntimeError": lambda c: RuntimeError(text_of(c)),
    "AssertionError": lambda c: AssertionError(text_of(c)),
    "AttributeError": lambda c: AttributeError(text_of(c), name=c["family"], obj=text_of(c)),
    "OSError": lambda c: OSError(errno.EIO, text_of(c), c["path"]),
    "FileNotFoundError": lambda c: FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), c["path"]),
    "PermissionError": lambda c: PermissionError(errno.EACCES, text_of(c), c["path"]),
    "ConnectionError": lambda c: ConnectionResetError(text_of(c)),
    "TimeoutError": lambda c: TimeoutError(text_of(c)),
    "UnicodeDecodeError": lambda c: UnicodeDecodeError("utf-8", text_of(c).encode(), 0, 1, text_of(c)),
    "UnicodeEncodeError": lambda c: UnicodeEncodeError("ascii", text_of(c), 0, 1, text_of(c)),
    "SyntaxError": lambda c: SyntaxError(text_of(c), (c["path"], 1, 1, text_of(c))),
    "JSONDecodeError": lambda c: json.JSONDecodeError(c["family"], text_of(c), 0),
    "InputError": lambda c: InputError(text_of(c)),
    "odd SiteError": lambda c: SiteError(text_of(c), text_of(c)),  # type: ignore[arg-type]
    "SiteError": lambda c: SiteError(list(Reason)[c["seed"] % len(Reason)], text_of(c)),
    "FloatingPointError": lambda c: FloatingPointError(text_of(c)),
    "ZeroDivisionError": lambda c: ZeroDivisionError(text_of(c)),
    "MemoryError": lambda c: MemoryError(text_of(c)),
    "RecursionError": lambda c: RecursionError(text_of(c)),
    "StopIteration": lambda c: StopIteration(text_of(c)),
    "ExceptionGroup": lambda c: ExceptionGroup(text_of(c), [ValueError(c["id"]), OSError(errno.EIO, c["given"], c["path"])]),
    "UserWarning": lambda c: UserWarning(text_of(c)),
    "caused": _caused,
    "loud": lambda c: _loud(Exception, c),
    "loud InputError": lambda c: _loud(InputError, c),
    "loud KeyError": lambda c: _loud(KeyError, c),
    "silent": lambda c: _silent(c, ValueError(text_of(c))),
}
# What ends a process, or leaves the gate: for cases of their own.
ENDS: dict[str, Callable[[Case], BaseException]] = {
    "KeyboardInterrupt": lambda c: KeyboardInterrupt(text_of(c)),
    "SystemExit": lambda c: SystemExit(text_of(c)),
    "panic": lambda c: _loud(BaseException, c),  # as Rust's panics reach Python
    "endless": lambda c: _silent(c, RecursionError(text_of(c))),
}


def crowd(case: Case) -> list[str]:
    """The ids of the other persons of the case."""
    draw = random.Random(f"crowd {case['seed']}")
    return [f"PAT-{draw.randrange(10**9):09d}/{draw.randrange(100):02d}".replace("/", "-") for _ in range(PERSONS - 1)]


def write_data(site: Path, case: Case, form: str, template: str, marker: str) -> Path:
    """A cohort of clinical columns, variants and images (``form``) around the case's person, and the manifest that leads to it."""
    draw, bad = random.Random(f"data {case['seed']}"), case.get("data", "")
    name = f"{case['given']} {case['family']}"
    folder = site / f"{name} {case['born']}"
    (folder / "images").mkdir(parents=True)
    ids = [case["id"], *crowd(case)]
    labels: list[Any] = [i % 2 for i in range(PERSONS)]
    age: list[Any] = [round(draw.gauss(0, 1) + label, 4) for label in labels]
    if bad == "cell":
        age[0] = text_of(case).replace(",", ";")
    if bad == "label":
        labels[0] = name
    persons = [f"{i},{label},{name},{case['born']}" for i, label in zip(ids, labels, strict=True)]
    persons += persons[:1] if bad == "twice" else []
    persons[0] += f",{name},{name}" if bad == "row" else ""
    data = "\n".join(["id,sick,name,born", *persons, ""]).encode()
    (folder / "persons.csv").write_bytes(data + "\u00e9 ".encode("latin-1") + data if bad == "encoding" else data)
    if bad != "gone":
        (folder / "clinical.csv").write_text(
            "\n".join(["id,age", *(f"{i},{a}" for i, a in zip(ids, age, strict=True)), ""]), encoding="utf-8"
        )
    _write_genotypes(folder / "cohort.vcf", ids, draw, marker, name if bad == "variant" else "", bad == "genotypes")
    _write_images(folder / "images", ids, labels, form, name, bad)
    if bad == "link":
        (folder / "persons.csv").unlink()
        (folder / "persons.csv").symlink_to(folder / f"{name} away.csv")
    inside = json.dumps(str(folder.name) + "/", ensure_ascii=False)[1:-1]
    text = template.replace('"data/', f'"{inside}')
    (site / "site.toml").write_text(text + (f"\n{name} = {case['born']} {case['id']}\n" if bad == "manifest" else ""), encoding="utf-8")
    return folder


def _write_genotypes(path: Path, ids: list[str], draw: random.Random, marker: str, odd: str, broken: bool) -> None:
    lines = ["##fileformat=VCFv4.2", "##contig=<ID=21>", '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">']
    lines += ["\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *ids])]
    for at in range(4):
        known = odd if odd and not at else f"{marker}{at}"
        calls = [draw.choice(("0/0", "0/1", "1/1")) for _ in ids]
        lines.append("\t".join(["21", str(9_000_000 + at), known, "A", "G", ".", ".", ".", "GT", *calls]))
    if broken:
        lines[3:] = [f"{ids[0]}\t{path}", *lines[4:]]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")


def _write_images(folder: Path, ids: list[str], labels: list[Any], form: str, name: str, bad: str) -> None:
    from PIL import Image

    generator = np.random.default_rng(len(name))
    pixels = generator.integers(0, 256, (len(ids), 8, 8)).astype(np.uint8)
    if form == "npz":
        np.savez(folder.parent / "images.npz", ids=np.array(ids), images=pixels[:-1] if bad == "shape" else pixels)
        if bad == "image":
            (folder.parent / "images.npz").write_bytes(f"PK\x03\x04{ids[0]} {name}".encode())
        return
    for person, picture in zip(ids, pixels, strict=True):
        shown = picture[:5] if bad == "shape" and person == ids[0] else picture
        if form == "npy":
            np.save(folder / f"{person}.npy", shown)
        else:
            Image.fromarray(shown).save(folder / f"{person}.png")
    if bad == "image":
        (folder / f"{ids[0]}.{form}").write_bytes(f"\x89PNG\r\n\x1a\n{name}".encode("latin-1", "replace"))


def clear_caches() -> None:
    """Everything is read and built again, as by a site that has just started."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("fedml", "clients", "strategies"):
            for value in list(vars(module).values()):
                if not isinstance(value, type) and callable(getattr(value, "cache_clear", None)):
                    value.cache_clear()


class Lines:
    """The lines of ours that a message passes, by phase; and a fault at one of them. Final."""

    def __init__(self) -> None:
        self.known: dict[str, list[tuple[str, int]]] = {}

    @contextmanager
    def watch(self, phase: str) -> Iterator[None]:
        """Notes the lines that are passed."""
        passed: dict[tuple[str, int], None] = dict.fromkeys(self.known.get(phase, []))
        with _traced(lambda where: passed.setdefault(where)):
            yield
        self.known[phase] = list(passed)

    @contextmanager
    def fail(self, where: tuple[str, int], error: BaseException, met: list[str]) -> Iterator[None]:
        """Raises ``error`` when line ``where`` is reached for the first time."""

        def reached(place: tuple[str, int]) -> None:
            if place == where and not met:
                met.append(f"{Path(place[0]).relative_to(ROOT)}:{place[1]}")
                raise error

        with _traced(reached):
            yield


@contextmanager
def _traced(reached: Callable[[tuple[str, int]], None]) -> Iterator[None]:
    """Calls ``reached`` before each line of our functions; ``Gate.handle`` itself is passed over: it is what catches."""

    def line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            reached((frame.f_code.co_filename, frame.f_lineno))
        return line

    def call(frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        ours = code.co_filename.startswith(OURS) and code is not HANDLE.__code__ and code.co_flags & inspect.CO_OPTIMIZED
        return line if ours else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)


def _raising(original: Callable[..., Any], place: str, call: int, error: BaseException, met: list[str]) -> Callable[..., Any]:
    count = itertools.count(1)

    def fail(*given: Any, **named: Any) -> Any:
        if next(count) == call:
            met.append(f"{place}#{call}")
            raise error
        return original(*given, **named)

    return fail


def failing(place: str, call: int, error: BaseException, met: list[str]) -> Any:
    """A context in which the named function raises ``error`` at its ``call``-th call."""
    owner, attribute, _, _ = PLACES[place]
    module, _, cls = owner.partition(":")
    target = getattr(importlib.import_module(module), cls) if cls else importlib.import_module(module)
    original = getattr(target, attribute)
    fail = _raising(original, place, call, error, met)
    if place == "hook":  # the function makes it, training calls it
        hook = _raising(lambda parameters: None, place, call, error, met)
        return patch.object(target, attribute, lambda *given: hook)
    return patch.object(target, attribute, fail)


def broken_journal(error: BaseException, met: list[str]) -> Any:
    """A context in which nothing can be written to the journal, as on a full disk."""

    def fail(*given: Any, **named: Any) -> Any:
        met.append("journal#all")
        raise error

    return patch("fedml.clients.gate.journal.Journal.append", fail)


def fault(case: Case, lines: Lines, met: list[str]) -> Any:
    """The case's fault as a context; ``met`` gets where it struck."""
    if case["place"] == "data":
        met.append(f"data:{case['data']}")
        return nullcontext()
    error = (ERRORS | ENDS)[case["kind"]](case)
    if case["place"] == "journal#all":
        return broken_journal(error, met)
    if case["place"] != "line":
        return failing(case["place"], case["call"], error, met)
    known = lines.known[case["phase"]]
    return lines.fail(known[int(case["at"] * len(known))], error, met)


def faulty(
    handle: Handle,
    site: Path,
    calm: Case,
    cases: dict[tuple[str, int], Case],
    form: str,
    note: Callable[[Case], None],
    own: Mapping[str, int] | None = None,
) -> Handle:
    """``handle`` with new persons for each message, and the case's fault for those that ``cases`` (phase, round) has.

    ``own``: the one round number that a gate takes, by phase. With it a message's number says only which case it is, and the gate gets each
    message as if it were of a run of its own.
    """
    template, lines = (site / "site.toml").read_text(encoding="utf-8"), Lines()

    def answer(gate: Gate, message: Message, context: Context) -> Message:
        config = message.content.config_records["config"]
        phase = str(config["phase"])
        case = cases.get((phase, int(str(config["round"]))))
        met: list[str] = []
        reported: Case = {"number": case["number"] if case else -1, "phase": phase, "kind": case and case["kind"], "left": ""}
        if own is not None:
            config["round"] = own.get(phase, int(str(config["round"])))
            gate._accepted.clear()
        folder = write_data(site, case or calm, form, template, calm["marker"])
        threading.current_thread().name = (case or calm)["family"]
        clear_caches()
        try:
            with lines.watch(phase) if case is None else fault(case, lines, met):
                return handle(gate, message, context)
        except BaseException as error:
            reported["left"] = type(error).__name__ if case and case["kind"] not in ("loud", "panic") else "its own class"
            raise
        finally:
            shutil.rmtree(folder)
            (site / "site.toml").write_text(template, encoding="utf-8")
            note(reported | {"met": met[:1]})

    return answer


def leak() -> None:
    """What must not be: the gate answers with the exception's text. The search has to find it."""
    from fedml.clients.gate import gate

    last: list[Exception] = []
    reason_of = gate.reason_of

    def remember(error: Exception) -> Reason:
        last.append(error)
        return reason_of(error)

    def refusal(message: Message, reason: Reason) -> Message:
        return Message(Error(600, str(last[-1])), reply_to=message)

    vars(gate).update(reason_of=remember, refusal=refusal)


def main(site: Path, plan: Path, outcomes: Path, *words: str) -> None:
    """Runs the site until it is stopped."""
    from fedml.clients.service import run_site
    from fedml.clients.site.manifest import read_site

    reported = read_site(site)
    planned = json.loads(plan.read_text(encoding="utf-8"))
    cases = {(c["phase"], c["round"]): c for c in planned["cases"] if c["site"] == reported.name}

    def note(outcome: Case) -> None:
        with outcomes.open("a", encoding="utf-8") as file:
            file.write(json.dumps(outcome | {"site": reported.name}) + "\n")

    calm, form = planned["calm"][reported.name], planned["form"][reported.name]
    Gate.handle = faulty(HANDLE, site, calm, cases, form, note, planned["own"])  # type: ignore[method-assign]
    if "leaky" in words:
        leak()
    run_site(reported)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), *sys.argv[4:])
