"""A centre that asks for allele counts against one site's real gate: two questions that differ by one person get no second answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import ConfigRecord, RecordDict

from fedml.clients.gate.approvals import approve
from fedml.clients.gate.checks import check_reply, limits
from fedml.clients.work.client import execute
from fedml.clients.work.genomics import analyse
from fedml.clients.work.half import Memory
from fedml.clients.work.request import read_request
from fedml.errors import SiteError
from fedml.study.study import Study, validate
from fedml.wire.records import pack, unpack
from tests.clients.gate.centre import Centre
from tests.experiments.frequencies.sites import drawn, plan, written


def study(column: str = "ancestry", name: str = "lookup", **changes: Any) -> Study:
    changed = plan(population=column, **changes)
    changed["federation"] = {"sites": ["north"], "rounds": 1}
    changed["study"]["name"] = name
    return validate(Study, changed, "test")


@pytest.fixture
def centre(tmp_path: Path) -> Centre:
    folder = written(tmp_path, drawn(), public=False) / "north"
    text = (folder / "site.toml").read_text()
    (folder / "site.toml").write_text(f'{text}\n[policy]\ncentre = "curious"\n')
    persons = pd.read_csv(folder / "persons.csv", dtype=str, keep_default_na=False)
    other = persons.ancestry.copy()
    other[int(np.flatnonzero(other == "AFR")[0])] = "EUR"  # one person of the other population
    persons.assign(other=other, again=persons.ancestry).to_csv(folder / "persons.csv", index=False)
    return Centre(study(), folder)


def panel_of(centre: Centre) -> dict[str, Any]:
    """The site's variants as it describes them, as an agreement."""
    panel = next(found for phase, found in reversed(centre.answered) if phase == "describe")["described/panel"].tobytes()
    zeros = np.zeros(panel.count(b"\n"), np.uint8)
    return {"panel": np.frombuffer(panel, np.uint8), "flips": zeros, "image_shape": np.zeros(0, np.int64)}


def asked(centre: Centre, run: int, of: Study, number: int = 0) -> str:
    """The code of the first refusal; "" if the counts were sent."""
    code = centre.ask("describe", 0, run, study=of)
    return code or centre.ask("frequencies", number, run, study=of, agreement=panel_of(centre), analysis={})


def told(centre: Centre) -> Any:
    return centre.answered[-1][1]["analysis/alleles"]


def test_an_honest_question_is_answered_and_once(centre: Centre) -> None:
    first = study()
    assert asked(centre, 1, first) == ""
    numbers = told(centre)
    assert numbers.shape[:2] == (9, 4)
    assert (numbers[0, 1] > 0).sum() > 40
    assert centre.ask("frequencies", 0, 1, study=first, agreement=panel_of(centre), analysis={}) == "replayed"
    assert asked(centre, 2, first) == ""  # another run: the same numbers, nothing new
    np.testing.assert_array_equal(told(centre), numbers)


def test_populations_that_differ_by_one_person_are_refused(centre: Centre) -> None:
    """The difference of AFR by the one column and by the other would be one person's genotypes."""
    first, second, same = study(), study("other", "second"), study("again", "third")
    for one in (second, same):
        approve(centre.state, one, "Dr. Test")
    assert asked(centre, 1, first) == ""
    assert asked(centre, 2, second) == "too-few-persons"
    centre.restart()
    assert asked(centre, 3, second) == "too-few-persons"
    assert asked(centre, 4, same) == ""  # the same persons in another column


def test_without_the_check_the_difference_would_be_that_persons_genotypes(centre: Centre, tmp_path: Path) -> None:
    """The attack works where nothing is compared: the sites' work alone, without the gate."""
    manifests = (str((centre.folder / "site.toml").resolve()),)
    both = []
    for of in (study(min_ac=0), study("other", "second")):
        content = RecordDict({"config": ConfigRecord({"study": of.canonical, "phase": "frequencies", "round": 0})})
        described = RecordDict({"config": ConfigRecord({"study": of.canonical, "phase": "describe", "round": 0})})
        answer = execute(read_request(described, manifests, None), described, Memory(RecordDict(), "1"))
        panel = unpack(answer.array_records["described"])["panel"]
        zeros = np.zeros(panel.tobytes().count(b"\n"), np.uint8)
        content["agreement"] = pack({"panel": panel, "flips": zeros, "image_shape": np.zeros(0, np.int64)})
        content["analysis"] = pack({})
        request = read_request(content, manifests, None)
        both.append(unpack(analyse(request, content).array_records["analysis"])["alleles"])
    given = (both[0][3, 1] >= 0) & (both[1][3, 1] >= 0)
    assert np.isin((both[0][3, :2] - both[1][3, :2])[:, given], (0, 1, 2)).all()
    assert (both[0][3, 0] - both[1][3, 0])[given].sum() > 0  # alleles of one person


def test_the_same_question_after_a_person_left_is_refused(centre: Centre) -> None:
    first = study()
    assert asked(centre, 1, first) == ""
    lines = (centre.folder / "persons.csv").read_text().splitlines()
    (centre.folder / "persons.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert asked(centre, 2, first) == "too-few-persons"
    (centre.folder / "persons.csv").write_text("\n".join(lines[:-7]) + "\n")  # seven persons: of each population and sex perhaps fewer
    assert asked(centre, 3, first) == "too-few-persons"
    (centre.folder / "persons.csv").write_text("\n".join(lines) + "\n")
    assert asked(centre, 4, first) == ""


def test_phases_that_the_study_does_not_have_are_refused(centre: Centre) -> None:
    without = validate(Study, {k: v for k, v in study(name="none").model_dump(mode="json").items() if k != "frequencies"}, "test")
    approve(centre.state, without, "Dr. Test")
    assert asked(centre, 1, without) == "undeclared-record"
    first = study()
    assert centre.ask("describe", 0, 2, study=first) == ""
    agreement = panel_of(centre)
    zeros = {"basis": np.zeros((1, 1)), "frequency": np.zeros(1)}
    assert centre.ask("subspace", 1, 2, study=first, agreement=agreement, analysis=zeros) == "undeclared-record"
    assert centre.ask("frequencies", 0, 2, study=first, agreement=agreement, analysis=zeros) == "undeclared-record"
    assert centre.ask("frequencies", 0, 2, study=first, agreement=agreement) == "undeclared-record"
    assert centre.ask("frequencies", 10**6, 2, study=first, agreement=agreement, analysis={}) == "rounds-beyond-policy"


def test_a_reply_with_a_cell_of_few_persons_does_not_leave(centre: Centre) -> None:
    """The gate counts the persons again: a site whose work told what it must not, or another number, sends nothing."""
    first = study()
    manifests = (str((centre.folder / "site.toml").resolve()),)
    assert centre.ask("describe", 0, 1, study=first) == ""
    agreement = panel_of(centre)
    content = RecordDict({"config": ConfigRecord({"study": first.canonical, "phase": "frequencies", "round": 0})})
    content["agreement"], content["analysis"] = pack(agreement), pack({})
    request, allowed = read_request(content, manifests, None), limits(centre.site.manifest.policy, first)
    honest = unpack(analyse(request, content).array_records["analysis"])["alleles"].copy()
    check_reply(request, RecordDict({"analysis": pack({"alleles": honest})}), content, allowed)
    hidden = np.argwhere(honest[:, 1] < 0)
    assert len(hidden) > 20
    refused = 0
    for group, variant in hidden[:40]:
        forged = honest.copy()
        forged[group, :, variant] = 1, 2, 0, 0
        with pytest.raises(SiteError):
            check_reply(request, RecordDict({"analysis": pack({"alleles": forged})}), content, allowed)
        refused += 1
    assert refused == min(40, len(hidden))
    for wrong in (honest.astype(np.int32), honest[:, :3], honest[:5]):
        with pytest.raises(SiteError):
            check_reply(request, RecordDict({"analysis": pack({"alleles": np.ascontiguousarray(wrong)})}), content, allowed)
