"""The site's side: an answer to any message, and never a word of what the site holds in an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import message_to_proto
from hypothesis import given
from hypothesis import strategies as st

from fedml.clients.work.client import answer, app
from fedml.cohort.variants.keys import to_text
from fedml.errors import Reason
from fedml.flower.grid import InProcessGrid
from fedml.modalities.layout import Layout
from fedml.models.fusion import build_model, constants, learned
from fedml.study.study import Study
from fedml.wire.records import unpack
from tests.conftest import clinical_site, image_site, make_study

PLANTED = "Patient-Zzyzx-4711"
Content = dict[str, Any]


class Site:
    """One site's ClientApp, asked by messages whose parts the test may change."""

    def __init__(self, manifest: Path, study: Study, layout: Layout = Layout(), **node: Any) -> None:
        self.study, self.manifest, self.node = study, manifest, node
        self.grid = InProcessGrid(app, [{"manifest": str(manifest), **node}])
        self.model = build_model(study, layout)
        self.agreement: Content = {
            **constants(self.model),
            "panel": np.zeros(0, np.uint8),
            "flips": np.zeros(0, np.uint8),
            "image_shape": np.array(layout.image_shape, dtype=np.int64),
        }

    def content(self, phase: str, number: int = 1) -> dict[str, Any]:
        made: dict[str, Any] = {"config": {"study": self.study.canonical, "phase": phase, "round": number}}
        if phase != "describe":
            made["agreement"] = dict(self.agreement)
        if phase in ("round", "evaluate"):
            made["arrays"] = dict(learned(self.model))
        return made

    def ask(self, content: Content, kind: str = "train") -> Message:
        """Sends the content, its arrays packed by Flower as any server might."""
        packed = {k: ArrayRecord({n: Array(np.asarray(v)) for n, v in arrays.items()}) for k, arrays in content.items() if k != "config"}
        record = RecordDict({**packed, **{k: ConfigRecord(v) for k, v in content.items() if k == "config"}})
        (reply,) = self.grid.send_and_receive([Message(record, 1, kind)])
        return reply


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(clinical_site(tmp_path / PLANTED, "a", 80, 1), make_study())


def refused(reply: Message, reason: Reason, *secrets: str) -> None:
    """An error with that code and nothing of the site in its bytes."""
    assert reply.has_error()
    assert reply.error.reason == str(reason)
    assert reply.error.reason in set(Reason)
    sent = message_to_proto(reply).SerializeToString()
    for secret in (PLANTED, "persons.csv", "clinical.csv", "site.toml", "pytest-of", *secrets):
        assert secret.encode() not in sent, secret


@pytest.mark.parametrize(("phase", "kind"), [("describe", "query"), ("statistics", "query"), ("round", "train"), ("evaluate", "evaluate")])
def test_a_good_message_is_answered(site: Site, phase: str, kind: str) -> None:
    reply = site.ask(site.content(phase), kind)
    assert reply.has_content()
    records = set(reply.content)
    assert (
        records
        == {
            "describe": {"site", "described"},
            "statistics": {"sums"},
            "round": {"arrays", "metrics", "counts"},
            "evaluate": {"counts"},
        }[phase]
    )
    assert PLANTED.encode() not in message_to_proto(reply).SerializeToString()


def test_describe_tells_persons_by_part_and_class(site: Site) -> None:
    reply = site.ask(site.content("describe"), "query")
    persons = unpack(reply.content.array_records["described"])["persons"]
    assert persons.shape == (3, 2)
    assert persons.sum() == 80
    assert dict(reply.content.config_records["site"]) == {"name": "a"}


def test_an_answer_depends_on_its_message_alone(site: Site) -> None:
    """The process keeps one model: nothing of an earlier message may stay in it."""

    def arrays(reply: Message) -> dict[str, Any]:
        return unpack(reply.content.array_records["arrays"])

    first = arrays(site.ask(site.content("round")))
    moved = site.content("round", 2)
    moved["arrays"] = {k: v + 1 for k, v in moved["arrays"].items()}
    site.ask(moved)
    again = arrays(site.ask(site.content("round")))
    assert all(np.array_equal(again[k], v) for k, v in first.items())


def test_sites_and_rounds_draw_their_own_random_numbers(tmp_path: Path) -> None:
    """The same persons in the same model, in another round or at a site of another name, are met in another order."""
    study, manifest = make_study(training__batch_size=8), clinical_site(tmp_path, "a", 40, 1)

    def trained(name: str, number: int) -> bytes:
        reply = Site(manifest, study, name=name).ask(Site(manifest, study).content("round", number))
        return b"".join(a.data for a in reply.content.array_records["arrays"].values())

    assert trained("a", 1) == trained("a", 1)
    assert len({trained("a", 1), trained("b", 1), trained("a", 2), trained("b", 2)}) == 4


def without(content: Content, key: str) -> Content:
    return {k: v for k, v in content.items() if k != key}


def put(content: Content, record: str, key: str, value: Any) -> Content:
    return {**content, record: {**content[record], key: value}}


def drop(content: Content, record: str, key: str) -> Content:
    return {**content, record: without(content[record], key)}


BAD: dict[str, Any] = {
    "no config": lambda c: without(c, "config"),
    "an empty config": lambda c: {**c, "config": {}},
    "no study": lambda c: drop(c, "config", "study"),
    "no phase": lambda c: drop(c, "config", "phase"),
    "no round": lambda c: drop(c, "config", "round"),
    "unknown phase": lambda c: put(c, "config", "phase", "raw-data"),
    "a round that is no number": lambda c: put(c, "config", "round", "first"),
    "a study that is no JSON": lambda c: put(c, "config", "study", "{"),
    "a study of bytes": lambda c: put(c, "config", "study", b"\xff\x00"),
    "a study that is none": lambda c: put(c, "config", "study", '{"study": {"name": "x"}}'),
    "a study with a new key": lambda c: put(c, "config", "study", c["config"]["study"].replace('"task":', '"taskk":')),
    "no arrays": lambda c: without(c, "arrays"),
    "an array missing": lambda c: drop(c, "arrays", "encoder.clinical.bias"),
    "an array too many": lambda c: put(c, "arrays", "extra", np.zeros(2)),
    "an array of another shape": lambda c: put(c, "arrays", "encoder.clinical.bias", np.zeros(3, np.float32)),
    "an array of no numbers": lambda c: put(c, "arrays", "encoder.clinical.bias", np.array(["a", "b"])),
    "no agreement": lambda c: without(c, "agreement"),
    "an agreement without a panel": lambda c: drop(c, "agreement", "panel"),
    "an agreement without an image shape": lambda c: drop(c, "agreement", "image_shape"),
    "an agreement without constants": lambda c: drop(c, "agreement", "preprocess.clinical.mean"),
    "constants of another shape": lambda c: put(c, "agreement", "preprocess.clinical.std", np.ones(9)),
    "constants too many": lambda c: put(c, "agreement", "preprocess.image.std", np.ones(1)),
}
AGREED = {
    "a panel that is none": lambda c: put(c, "agreement", "panel", np.frombuffer(b"junk\n", np.uint8)),
    "a panel of no text": lambda c: put(c, "agreement", "panel", np.full(5, 255, np.uint8)),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("phase", ["round", "evaluate"])
def test_a_bad_message_gets_a_code_and_no_text(site: Site, what: str, phase: str) -> None:
    refused(site.ask(BAD[what](site.content(phase))), Reason.BAD_MESSAGE)


@pytest.mark.parametrize("what", AGREED)
def test_a_bad_panel_is_a_bad_message(site: Site, what: str) -> None:
    refused(site.ask(AGREED[what](site.content("round"))), Reason.BAD_MESSAGE)


def test_an_empty_message_gets_a_code(site: Site) -> None:
    for kind in ("query", "train", "evaluate"):
        refused(site.ask({}, kind), Reason.BAD_MESSAGE)


@given(data=st.data())
def test_whatever_a_config_holds_the_answer_is_a_code_or_content(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-config"
    study = make_study()
    manifest = folder / "site.toml"
    site = Site(manifest if manifest.exists() else clinical_site(folder, "a", 20, 1), study)
    value = st.one_of(st.text(max_size=20), st.integers(-(2**40), 2**40), st.floats(), st.booleans(), st.binary(max_size=9))
    content = site.content(data.draw(st.sampled_from(["describe", "statistics", "round", "evaluate"])))
    key = data.draw(st.sampled_from(["study", "phase", "round", "proximal-mu"]))
    content["config"][key] = data.draw(value)
    reply = site.ask(content)
    if reply.has_error():
        assert reply.error.reason in set(Reason)
        assert str(folder).encode() not in message_to_proto(reply).SerializeToString()


def test_a_study_for_other_sites_is_refused(tmp_path: Path) -> None:
    manifest = clinical_site(tmp_path, "c", 30, 1)
    site = Site(manifest, make_study(sites=("a", "b")))
    for phase in ("describe", "round"):
        refused(site.ask(site.content(phase)), Reason.NOT_IN_ROSTER)


@pytest.mark.parametrize("name", ["persons.csv", "clinical.csv", "site.toml"])
def test_data_that_cannot_be_read_is_bad_data(tmp_path: Path, name: str) -> None:
    manifest = clinical_site(tmp_path / PLANTED, "a", 30, 1)
    (manifest.parent / name).unlink()
    site = Site(manifest, make_study())
    for phase in ("describe", "statistics", "round", "evaluate"):
        refused(site.ask(site.content(phase)), Reason.BAD_DATA)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("persons.csv", f"id,y\n{PLANTED},1\n{PLANTED},0\n"),
        ("persons.csv", f"id,y\n{PLANTED},{PLANTED}\n"),
        ("persons.csv", f"id,{PLANTED}\n1,1\n"),
        ("persons.csv", f'id,y\n"{PLANTED},1\n'),
        ("clinical.csv", f"id,x1,x2,x3\na0001,{PLANTED},1,1\n"),
        ("clinical.csv", f"id,x1,x2,{PLANTED}\na0001,1,1,1\n"),
        ("site.toml", f'[site]\nname = "{PLANTED}"\n[data]\npersons = "{PLANTED}"\n'),
    ],
)
def test_a_planted_id_never_leaves_with_an_error(tmp_path: Path, name: str, text: str, caplog: pytest.LogCaptureFixture) -> None:
    manifest = clinical_site(tmp_path / "s", "a", 30, 1)
    (manifest.parent / name).write_text(text)
    site = Site(manifest, make_study())
    for phase in ("describe", "round"):
        refused(site.ask(site.content(phase)), Reason.BAD_DATA)
    assert f"refused (bad-data): {manifest.parent / name}" in caplog.text  # the site's own log tells the site


def test_a_broken_image_of_a_planted_person_never_leaves_with_an_error(tmp_path: Path) -> None:
    from tests.conftest import write_csv, write_manifest

    write_csv(tmp_path / "persons.csv", [PLANTED], {"y": [1]})
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / f"{PLANTED}.png").write_bytes(b"broken")
    site = Site(write_manifest(tmp_path, "a", image='{ path = "images", format = "png" }'), make_study(("image",)), Layout((1, 8, 8)))
    refused(site.ask(site.content("describe")), Reason.BAD_DATA, "broken")


def test_an_image_shape_that_is_not_the_sites_is_refused(tmp_path: Path) -> None:
    """Volumes were agreed on, the site has pictures."""
    manifest = image_site(tmp_path / PLANTED, "a", 20, 1)
    site = Site(manifest, make_study(("image",)), Layout((1, 8, 8, 8)))
    refused(site.ask(site.content("round")), Reason.BAD_MESSAGE, "expected", "channels")


def test_a_loss_that_is_no_number_is_non_finite(site: Site) -> None:
    content = site.content("round")
    content["config"]["round"] = 2
    content["config"]["study"] = make_study(training__evaluate_every=0).canonical
    content["arrays"] = {k: v * float("nan") for k, v in content["arrays"].items()}
    refused(site.ask(content), Reason.NON_FINITE)


@pytest.mark.parametrize("phase", ["round", "evaluate"])
def test_a_model_that_is_no_number_is_non_finite(site: Site, phase: str) -> None:
    content = site.content(phase)
    content["arrays"] = {k: v * float("nan") for k, v in content["arrays"].items()}
    refused(site.ask(content), Reason.NON_FINITE)


def test_weights_that_are_no_numbers_do_not_leave(tmp_path: Path) -> None:
    site = Site(clinical_site(tmp_path, "a", 40, 1, labels=range(40)), diverging(local_epochs=1))
    refused(site.ask(site.content("round")), Reason.NON_FINITE)


def test_divergence_is_refused_in_the_same_round(tmp_path: Path) -> None:
    site = Site(clinical_site(tmp_path, "a", 40, 1, labels=range(40)), diverging(local_epochs=3))
    refused(site.ask(site.content("round")), Reason.NON_FINITE)


def diverging(local_epochs: int) -> Study:
    """Some steps far beyond float32."""
    training = {"optimizer": "sgd", "lr": 1e6, "batch_size": 1, "local_epochs": local_epochs}
    return make_study(model__task="regression", training=training)


def test_a_node_of_flowers_simulation_finds_its_site_by_its_place(tmp_path: Path) -> None:
    for k, name in enumerate("ab"):
        clinical_site(tmp_path / f"folder-{name}", name, 30, k)
    site = Site(tmp_path, make_study())
    content = RecordDict({"config": ConfigRecord(site.content("describe")["config"])})
    for place, name in ((0, "a"), (1, "b"), (2, None)):
        context = Context(1, 1, {"partition-id": place}, RecordDict(), {"sites": str(tmp_path)})
        reply = answer(Message(content, 1, "query"), context)
        if name is None:
            assert reply.error.reason == Reason.NOT_IN_ROSTER
        else:
            assert reply.content.config_records["site"]["name"] == name


def test_variants_are_described_by_their_keys(tmp_path: Path) -> None:
    from tests.conftest import write_csv, write_manifest, write_vcf

    ids = [f"{PLANTED}-{k}" for k in range(12)]
    records = [("22", 10 * k + 1, f"rs{k}", "A", "G", ["0/0", "0/1", "1/1"] * 4) for k in range(5)]
    write_csv(tmp_path / "persons.csv", ids, {"y": [0, 1] * 6})
    write_vcf(tmp_path / "c.vcf.gz", ids, records)
    manifest = write_manifest(tmp_path, "a", variants='{ path = "c.vcf.gz", build = "GRCh38" }')
    site = Site(manifest, make_study(("variants",)), Layout(variants=5))
    reply = site.ask(site.content("describe"))
    panel = unpack(reply.content.array_records["described"])["panel"].tobytes()
    assert panel.decode().splitlines()[0] == "22\t1\trs0\tA\tG"
    assert panel.count(b"\n") == 5
    assert PLANTED.encode() not in message_to_proto(reply).SerializeToString()
    from fedml.cohort.variants.keys import from_text

    assert to_text(from_text(panel)) == panel


def test_errors_do_not_stop_the_next_message(site: Site) -> None:
    assert site.ask(site.content("round")).has_content()
    assert site.ask({}).has_error()
    bad = BAD["an array of another shape"](site.content("round"))
    assert site.ask(bad).has_error()
    assert site.ask(site.content("round")).has_content()


def test_the_canonical_study_crosses_the_wire_unchanged(site: Site) -> None:
    text = site.content("round")["config"]["study"]
    assert json.loads(text)["study"]["name"] == "toy"
    proto = message_to_proto(Message(RecordDict({"config": ConfigRecord({"study": text})}), 1, "train"))
    assert text.encode() in proto.SerializeToString()
