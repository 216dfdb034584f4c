"""No text makes ``read_study`` or ``parse_study`` fail otherwise than by ``InputError``, take long, or fill the memory."""

from __future__ import annotations

import copy
import gzip
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedml.errors import InputError
from fedml.modalities.layout import Layout
from fedml.models.fusion import build_model
from fedml.privacy.accounting import MOST_STEPS, SMALLEST_DELTA
from fedml.study import limits
from fedml.study.genes import read_genes
from fedml.study.read import read_study
from fedml.study.study import Study, parse_study, validate
from tests.conftest import make_plan, make_study, to_toml

STUDIES = Path(__file__).parents[3] / "experiments" / "studies"
TEXTS = {path.name: path.read_bytes() for path in sorted(STUDIES.glob("*.toml"))}
GENES = (STUDIES / "genes.bed").read_bytes()


def refused(path: Path, text: bytes) -> str:
    """What ``read_study`` says of a text; "" if it accepts it. Another exception than ``InputError`` ends the test."""
    path.write_bytes(text)
    try:
        study = read_study(path)
    except InputError as error:
        return str(error)
    assert parse_study(study.canonical).sha256 == study.sha256
    return ""


PIECES = st.one_of(
    st.sampled_from(
        [b"[", b"]", b"{", b"}", b"=", b".", b'"', b"'", b"\n", b"1e999", b"-1", b"nan", b"\x00", b"\xff", b"9" * 5000, b"[" * 3000]
    ),
    st.sampled_from(list(TEXTS.values())),
    st.binary(max_size=40),
)


@settings(max_examples=150)
@given(name=st.sampled_from(list(TEXTS)), cuts=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 60), PIECES), min_size=1, max_size=6))
def test_no_change_of_bytes_ends_otherwise_than_with_a_sentence(name: str, cuts: list[Any], tmp_path: Path) -> None:
    text = TEXTS[name]
    for place, length, piece in cuts:
        at = int(place * len(text))
        text = text[:at] + piece + text[at + length :]
    (tmp_path / "genes.bed").write_bytes(GENES)
    said = refused(tmp_path / "study.toml", text)
    assert len(said) < 3_000
    assert "\x1b" not in said


HOSTILE: list[Any] = [
    0, -1, 1, 2**31, 2**63, 10**18, 10**400, -(10**400), 1e-320, 1e15, 1e308, -1e308, True, None, "", "x" * 5_000,
    "\ud800", "\x1b[2J", "../../x",
    "\0", [], [[]], [[[[]]]] , {}, {"a": 1}, {"": ""}, [1e308] * 4, [10**12] * 3, [0] * 40, ["a"] * 3000, {str(k): k for k in range(300)},
    [None],
    [2**62, 2**62], "nan", "inf", "1e400", [-1, 10**30], [0.5, "a", 3, None, True],
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a plan."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in places(item, (*path, key)))]


def whole_plans() -> dict[str, dict[str, Any]]:
    """Every shipped study with all of its keys, defaults too."""
    return {name: json.loads(read_study(STUDIES / name).canonical) for name in TEXTS}


@settings(max_examples=120)
@given(data=st.data())
def test_no_value_ends_otherwise_than_with_a_sentence(data: st.DataObject) -> None:
    plan = json.loads(json.dumps(data.draw(st.sampled_from(list(PLANS.values())))))
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from([place for place in places(plan) if place]))
        at = plan
        for key in path:
            at = at[key]
        at[last] = copy.deepcopy(data.draw(st.sampled_from(HOSTILE)))
    said = ""
    try:
        study = parse_study(json.dumps(plan))
        assert parse_study(study.canonical) == study
    except InputError as error:
        said = str(error)
    assert len(said) < 3_000


PLANS = whole_plans()

BEYOND: dict[str, tuple[dict[str, Any], str, str]] = {
    # what is set -> key that the error names, limit that it names
    "epochs": ({"training__local_epochs": 10**12}, "local_epochs", "10000"),
    "rounds": ({"federation__rounds": 10**6}, "rounds", "100000"),
    "epochs of all rounds": ({"training__local_epochs": 10_000, "federation__rounds": 1_000}, "local_epochs", "1,000,000"),
    "a layer": ({"model__clinical": {"net": "mlp", "hidden": [10**9, 10**9]}}, "hidden", "65536"),
    "two layers": ({"model__clinical": {"net": "mlp", "hidden": [60_000, 60_000]}}, "hidden", "268,435,456"),
    "many layers": ({"model__clinical": {"net": "mlp", "hidden": [2] * 100}}, "hidden", "32"),
    "hidden fusion": ({"model__hidden": [10**9]}, "hidden", "65536"),
    "width": ({"model__width": 10**9}, "width", "65536"),
    "channels": ({"model__image": {"channels": [10**9]}}, "channels", "4096"),
    "channels of masks": ({"model__segmentation": {"channels": [2, 10**9]}}, "channels", "4096"),
    "strides": ({"model__segmentation": {"strides": [10**9]}}, "strides", "64"),
    "window": ({"model__segmentation": {"window": [4096, 4096, 4096]}}, "window", "268,435,456"),
    "genes": ({"model__variants": {"net": "genes", "width": 10**9}}, "width", "1024"),
    "batch": ({"training__batch_size": 10**12}, "batch_size", "1000000"),
    "learning rate": ({"training__lr": 1e12}, "lr", "1000000"),
    "weight decay": ({"training__weight_decay": 1e12}, "weight_decay", "1000000"),
    "evaluations": ({"training__evaluate_every": 10**12}, "evaluate_every", "100000"),
    "threads": ({"training__threads": 10**6}, "threads", "64"),
    "seed": ({"study__seed": 2**62}, "seed", "4611686018427387904"),
    "sites": ({"federation__sites": [f"s{k}" for k in range(2_000)]}, "sites", "1000"),
    "quorum": ({"federation__quorum": 10**9}, "quorum", "1000"),
    "timeout": ({"federation__timeout": 10**12}, "timeout", "604800"),
    "columns": ({"cohort__clinical": {"columns": [f"c{k}" for k in range(6_000)]}}, "columns", "5000"),
    "name of a column": ({"cohort__clinical": {"columns": ["c" * 1_000]}}, "columns", "200"),
    "classes": ({"cohort__classes": list(range(2_000))}, "classes", "1000"),
    "codes": ({"cohort__clinical": {"columns": ["c"], "missing": {"c": list(range(20_000))}}}, "missing", "10000"),
    "clipping": ({"privacy": {"unit": "site", "clipping_norm": 1e12, "epsilon": 1.0}}, "clipping_norm", "1000000"),
    "noise": ({"privacy": {"unit": "site", "noise_multiplier": 1e-12}}, "noise_multiplier", "0.000001"),
    "delta": ({"privacy": {"unit": "site", "noise_multiplier": 1.0, "delta": 1e-30}}, "delta", "0.0000000001"),
    "question": ({"study__question": "x" * 10**6}, "question", "10,000"),
    "a whole number": ({"strategy__mu": 10**100}, "strategy.mu", "2^62"),
    "a number": ({"strategy__mu": 1e300}, "strategy.mu", "1e+15"),
    "a key": ({"strategy__" + "k" * 1_000: 1}, "strategy", "200"),
    "keys": ({f"strategy__k{k}": 1 for k in range(20_000)}, "strategy", "10,000"),
    "least number of persons": ({"policy__min_persons": 10**17}, "min_persons", "9007199254740992"),
}  # fmt: skip


@pytest.mark.parametrize("name", BEYOND)
def test_a_limit_is_named_with_its_key(name: str, tmp_path: Path) -> None:
    changes, key, limit = BEYOND[name]
    said = refused(tmp_path / "study.toml", to_toml(make_plan(**changes)).encode())
    assert key in said, said
    assert limit in said, said
    assert len(said) < 500
    assert said.rstrip(")").endswith(".")


def test_limits_of_images() -> None:
    for changes, key in (
        ({"size": [4_096, 4_096, 4_096]}, "size"),
        ({"size": [16_384, 16_384], "channels": 64}, "channels"),
        ({"tiles": {"size_px": 2_048, "per_step": 65_536}}, "per_step"),
    ):
        with pytest.raises(InputError, match=rf"{key}.* the limit is [\d,]+"):
            validate(Study, make_plan(("image",), cohort__image=changes), "study.toml")


def test_noised_steps_are_as_many_as_the_accountant_composes() -> None:
    plan = {
        "unit": "patient",
        "noise_multiplier": 1.0,
        "persons": {"a": 10_000_000, "b": 9},
        "ranges": {f"x{k}": [0, 1] for k in (1, 2, 3)},
    }
    with pytest.raises(InputError, match=r"batch_size give 10,000,002 steps with noise, the limit is 50,000 at"):
        make_study(privacy={**plan, "delta": 1e-10}, training__batch_size=2)
    with pytest.raises(InputError, match=r"the limit is 1,000,000 at"):
        make_study(privacy={**plan, "delta": 5e-8}, training__batch_size=2)
    assert limits.PRIVATE_STEPS == MOST_STEPS
    assert SMALLEST_DELTA == 1e-10


def test_a_model_too_large_is_refused_before_it_is_built() -> None:
    """65,536 features of 10,000 agreed variants are 2.6 GB of weights; of the study alone the number of variants is not known."""
    study = make_study(("variants",), model__variants={"net": "mlp", "hidden": [65_536]})
    with pytest.raises(InputError, match=r"variants hidden gives the model 655,425,536 of its 655,425,536 weights"):
        build_model(study, Layout((), 10_000))


def test_many_listed_variants_are_accepted() -> None:
    """As many as a genotyping array has."""
    study = parse_study(json.dumps(make_plan(("variants",), cohort__variants={"listed": [f"rs{k}" for k in range(800_000)]})))
    assert len(study.cohort.variants.listed) == 800_000


_CHILD = """
import resource, sys, time
from pathlib import Path
from fedml.errors import InputError
from fedml.study.read import read_study
from fedml.study.study import parse_study
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    path = Path(sys.argv[1])
    print((read_study(path) if path.suffix == ".toml" else parse_study(path.read_text())).sha256)
except InputError as error:
    print(error)
print(time.process_time() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
HEAD = b'[study]\nname="a"\n[cohort]\ninputs=["variants"]\ntarget="y"\n[federation]\nsites=["a"]\n'
MEGABYTE = 2**20
COSTLY: dict[str, bytes] = {
    "dotted.toml": b".".join([b"a"] * 500_000) + b" = 1",
    "quoted dots.toml": b".".join([b'"a"', b"'b'"] * 200_000) + b" = 1",
    "escaped quotes.toml": b".".join([b'"\\""'] * 500_000) + b" = 1",
    "header.toml": b"[" + b" . ".join([b"a"] * 500_000) + b"]",
    "inline dots.toml": b"x = {" + b".".join([b"a"] * 500_000) + b" = 1}",
    "nested.toml": b"x = " + b"[" * MEGABYTE + b"]" * MEGABYTE,
    "tables.toml": b"\n".join(b"[t%d]" % k for k in range(300_000)),
    "one long word.toml": b"a" * (4 * MEGABYTE),
    "quotes.toml": b'"' * (4 * MEGABYTE),
    "escapes.toml": b'x = "' + b"\\n" * MEGABYTE + b'"',
    "digits.toml": b"x = " + b"9" * (3 * MEGABYTE),
    "too long.toml": b"# " + b"x" * (200 * MEGABYTE),
    "wrong items.toml": HEAD + b"[cohort.variants]\nlisted = [" + b"1," * 1_500_000 + b"]",
    "wrong keys.toml": HEAD + b"".join(b"k%d = 1\n" % k for k in range(200_000)),
    "nested.json": b"[" * (8 * MEGABYTE) + b"]" * (8 * MEGABYTE),
    "lists.json": b'{"study": [' + b"[]," * (8 * MEGABYTE) + b"[]]}",
    "wrong items.json": b'{"cohort": {"variants": {"listed": [' + b"1," * 1_900_000 + b"1]}}}",
    "digits.json": b'{"study": ' + b"9" * (30 * MEGABYTE) + b"}",
    "too long.json": b'{"study": "' + b"x" * (60 * MEGABYTE) + b'"}',
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", COSTLY)
def test_no_text_costs_more_than_seconds_and_some_memory(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(COSTLY[name])
    done = subprocess.run([sys.executable, "-P", "-c", _CHILD, tmp_path / name], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    said, cost = done.stdout.rsplit("\n", 2)[:2]
    seconds, megabytes = map(float, cost.split())
    assert seconds < 20, said
    assert megabytes < 800, said
    assert 20 < len(said) < 1_000
    assert said.rstrip(")").endswith(".")


def test_a_text_too_long_is_not_parsed(tmp_path: Path) -> None:
    assert "bytes long, the limit is 4,194,304" in refused(tmp_path / "study.toml", b"#" * (5 * MEGABYTE))


def test_a_long_dotted_key_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    """tomllib takes hours for this line; the small version of the test above."""
    assert "line 1 has a key of more than 16 parts" in refused(tmp_path / "study.toml", COSTLY["dotted.toml"])
    assert "line 1 has a key of more than 16 parts" in refused(tmp_path / "study.toml", COSTLY["escaped quotes.toml"])
    assert tomllib.loads("a.b.c = 'a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p'")["a"]
    assert not limits.toml_problem("x = [0.5, 0.25, 1.5]\ny = { a.b = 1 }")


@pytest.mark.parametrize("name", ["/dev/zero", "features\0.txt", "x" * 5_000, "."])
def test_a_file_that_the_study_names_cannot_do_more(name: str, tmp_path: Path) -> None:
    plan = make_plan(("omics",), cohort__omics={"features": name})
    assert refused(tmp_path / "study.toml", to_toml(plan).encode())


@pytest.mark.parametrize("text", [b"#" * (3 * MEGABYTE), b"# a comment\n" * 200_000])
def test_a_packed_file_of_genes_is_not_unpacked_without_end(text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "genes.gff3.gz").write_bytes(gzip.compress(text))
    monkeypatch.setattr(limits, "GENE_BYTES", 2 * MEGABYTE)
    with pytest.raises(InputError, match=r"genes\.gff3\.gz: has more than 2,097,152 bytes, or a line of more than 1,048,576"):
        read_genes(tmp_path / "genes.gff3.gz")


def test_parts_of_a_model_count_together() -> None:
    wide = {"net": "mlp", "hidden": [14_000, 14_000]}
    names = {"columns": ["x1"]}
    one = make_plan(("clinical",), cohort__clinical=names, model__clinical=wide)
    assert validate(Study, one, "study.toml")
    both = make_plan(
        ("clinical", "omics"), cohort__clinical=names, cohort__omics={"columns": ["g1"]}, model__clinical=wide, model__omics=wide
    )
    with pytest.raises(InputError, match=r"of its 392,\d{3},\d{3} weights"):
        validate(Study, both, "study.toml")
