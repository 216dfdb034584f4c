"""Sites' signatures in a bundle: whose keys signed, what a reader gives to verify, and what other software may not send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord

from fedml.contract.witness import WITNESS, Said, fingerprint, is_signed, witness
from fedml.errors import InputError, Reason
from fedml.experiments.evidence.bundle import write_bundle
from fedml.experiments.evidence.verdict import markdown, site_keys
from fedml.experiments.evidence.verify import summary, verify
from fedml.flower.keys import key_fingerprint, read_public_key, write_node_key
from fedml.wire.records import JOURNAL
from tests.evidence import KEY, witnessed
from tests.fedml.contract.test_replies import refused, trained

SAID = Said("oslo", "1" * 64, "7", "evaluate", 3, "2" * 64, 9, "3" * 64, "4" * 64, "5" * 64, "6" * 64)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(bundle, sites) of a run of which two of three sites have a node key."""
    folder = tmp_path_factory.mktemp("signed")
    made, sites = witnessed(folder, keys=("oslo", "porto"))
    write_bundle(made, folder / "run.zip", KEY)
    return folder / "run.zip", sites


def test_the_verdict_says_how_many_sites_signed_and_by_which_keys(run: tuple[Path, Path]) -> None:
    bundle, sites = run
    marks = {name: key_fingerprint(read_public_key(sites / name / "node.key.pub")) for name in ("oslo", "porto")}
    found = verify(bundle, keys=marks)
    assert found.ok, summary(found)
    text = next(check.text for check in found.checks if check.name == "witnesses")
    assert text.startswith("the last evaluation is signed by 2 of 3 sites' keys (oslo SHA256:")
    assert all(mark in text for mark in marks.values())
    assert "the sites without a confirmed key" in found.word
    assert "whose the sites' keys are" in verify(bundle).word
    table = markdown(bundle.name, found)
    assert table.startswith("Verification of `run.zip`: **every check passed**.")
    assert "| witnesses | passed | the last evaluation is signed by 2 of 3" in table
    assert "What rests on the signer's word alone: " in table


def test_a_site_that_must_have_signed_and_did_not_is_found(run: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, _ = run
    write_node_key(tmp_path / "other.key")
    other = key_fingerprint(read_public_key(tmp_path / "other.key.pub"))
    for keys, words in (
        ({"utrecht": other}, "is not signed"),
        ({"oslo": other}, "--site-key has"),
        ({"paris": other}, "not a site of the study"),
    ):
        found = verify(bundle, keys=keys)
        assert words in summary(found)


def test_keys_are_given_as_files_or_fingerprints(run: tuple[Path, Path]) -> None:
    _, sites = run
    file = sites / "oslo" / "node.key.pub"
    mark = key_fingerprint(read_public_key(file))
    assert site_keys([f"oslo={file}", f"porto={mark}"]) == {"oslo": mark, "porto": mark}
    for wrong in ("oslo", "oslo=", f"=x{file}", "oslo=SHA256:short", f"oslo={sites / 'oslo' / 'node.key'}"):
        with pytest.raises(InputError):
            site_keys([wrong])
    with pytest.raises(InputError, match="twice"):
        site_keys([f"oslo={mark}", f"oslo={mark}"])


def test_a_signature_is_on_every_field() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    by = witness(key, SAID)
    assert is_signed(SAID, by)
    for name, value in SAID._asdict().items():
        changed: Any = {name: value + 1 if isinstance(value, int) else f"{value}0"}
        assert not is_signed(SAID._replace(**changed), by), name
    assert not is_signed(SAID, by._replace(key=witness(ec.generate_private_key(ec.SECP384R1()), SAID).key))
    assert fingerprint(by.key).startswith("SHA256:")


@pytest.mark.parametrize(
    "change",
    [
        {"key": ""}, {"key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqUX0Q0uSbrT2ZPSdgmgFdgGmmPmZ7g2ZqNW0T2O4zr"}, {"signature": "x" * 500},
        {"agreement": "approved"}, {"run": "-1"}, {"reply": ""}, {"counts": "0"}, {"signature": None}, {"patient": "Anna"},
    ],
)  # fmt: skip
def test_a_reply_with_another_form_of_signature_is_refused(change: dict[str, Any]) -> None:
    values = {"head": "2" * 64, "count": 9, **witness(ec.generate_private_key(ec.SECP384R1()), SAID)._asdict()}
    reply = trained()
    reply[JOURNAL] = ConfigRecord(values)
    assert refused(reply) == ""
    reply[JOURNAL] = ConfigRecord({name: value for name, value in {**values, **change}.items() if value is not None})
    assert refused(reply) == Reason.UNDECLARED


def test_no_number_about_persons_is_in_what_a_site_signs() -> None:
    """Digests of what it received and sent, and the head of its journal: nothing that the centre does not have."""
    assert set(Said._fields) == {"site", "study", "phase", "round", "head", "entries", *WITNESS} - {"key", "signature"}
