"""A centre that lies in a whole-genome regression: no sums about few persons, and not so many that genotypes could be solved for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedml.clients.gate.approvals import approve
from fedml.clients.gate.gate import Gate
from fedml.clients.service import prepare_state
from fedml.clients.site.manifest import read_site
from fedml.flower.grid import InProcessGrid
from fedml.study.study import Study
from fedml.wire.records import pack, unpack
from tests.strategies.gwas.test_polygenic import BLOCK, CONTIGS, FOLDS, H2, SITES, World

IMAGE = {"image_shape": np.zeros(0, np.int64)}
AUTOSOMAL = [at for at, contig in enumerate(CONTIGS) if contig != "X"]
BINARY, NUMBER = "binary", "number"


def panel(chosen: list[int], name: str = "panel", flips: str = "flips") -> dict[str, Any]:
    lines = "".join(f"{CONTIGS[at]}\t{1000 + 10 * at}\trs{at + 1}\tA\tG\n" for at in chosen)
    return {name: np.frombuffer(lines.encode(), np.uint8), flips: np.zeros(len(SITES) * len(chosen), np.uint8)}


def part(chosen: list[int]) -> dict[str, Any]:
    return {**panel(chosen), **IMAGE}


def blocked(chosen: list[int]) -> dict[str, Any]:
    return {**panel(chosen, "poly_panel", "poly_flips"), "poly_frequency": np.full(len(chosen), 0.3)}


def design() -> dict[str, Any]:
    return {
        "everyone": np.ones(1, np.uint8), "centre": np.array([50.0, 0]), "scale": np.array([10.0, 1]), "loadings": np.zeros((0, 0)),
        "loading_values": np.zeros(0), "loading_frequency": np.zeros(0), "loading_panel": np.zeros(0, np.uint8),
        "loading_flips": np.zeros(0, np.uint8),
    }  # fmt: skip


def count_of_blocks(chosen: list[int]) -> int:
    return sum(-(-[CONTIGS[at] for at in chosen].count(contig) // BLOCK) for contig in set(CONTIGS))


def levels(chosen: list[int], blocks: int | None = None, weight: float = 0.01) -> dict[str, Any]:
    columns = (count_of_blocks(chosen) if blocks is None else blocks) * len(H2) * FOLDS
    return {"level": np.full((len(chosen), len(H2) * FOLDS), weight), "level_shift": np.zeros((2, columns))}


def offset(chosen: list[int], weights: Any, leave: int = -1) -> dict[str, Any]:
    return {**blocked(chosen), "poly_weights": weights, "poly_shift": np.zeros((2, FOLDS)), "poly_leave": np.array([leave], np.int64)}


class Centre:
    """The gate of one site of ``World``, and what it answers."""

    def __init__(self, folder: Path, study: Study) -> None:
        site = read_site(folder)
        prepare_state(site)
        approve(site.state, study, "Dr. Test")
        self.study, self.gate, self.run, self.number = study, Gate(site, site.state), 1, 0
        self.grid = InProcessGrid(self._handle, [{}])

    def _handle(self, message: Any, context: Any) -> Any:
        message.metadata.__dict__["_run_id"] = self.run
        return self.gate.handle(message, context)

    def ask(self, phase: str, agreement: Any, analysis: Any, run: int = 1) -> tuple[str, dict[str, Any]]:
        """(code, arrays)."""
        self.run, self.number = run, self.number + 1
        content = RecordDict({"config": ConfigRecord({"study": self.study.canonical, "phase": phase, "round": self.number})})
        content["agreement"], content["analysis"] = pack(agreement), pack(analysis)
        (sent,) = self.grid.push_messages([Message(content, 1, "query")])
        (reply,) = self.grid.pull_messages([sent])
        if reply.has_error():
            return str(reply.error.reason), {}
        return "", {k: v for record in reply.content.array_records.values() for k, v in unpack(record).items()}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, World]]:
    folder = tmp_path_factory.mktemp("poly")
    return folder, {kind: World(folder / kind, binary=kind == BINARY) for kind in (BINARY, NUMBER)}


@pytest.fixture
def centre(worlds: tuple[Path, dict[str, World]], request: pytest.FixtureRequest, tmp_path: Path) -> Centre:
    folder, found = worlds
    kind = getattr(request, "param", NUMBER)
    shutil.copytree(folder / kind / "utrecht", tmp_path / "utrecht")
    return Centre(tmp_path / "utrecht", found[kind].study())


def test_what_follows_from_the_plan_is_answered(centre: Centre) -> None:
    code, sums = centre.ask("folds", part(AUTOSOMAL), design())
    assert not code
    assert sums["used"].all()
    assert (sums["n"] >= 112).all()
    here = AUTOSOMAL[: 2 * BLOCK]
    code, sums = centre.ask("blocks", part(here), {**design(), **blocked(AUTOSOMAL), "frequency": np.full(len(here), 0.3)})
    assert not code
    assert sums["gg"].shape == (FOLDS, 2 * BLOCK, BLOCK)
    code, sums = centre.ask("level", part([]), {**design(), **blocked(AUTOSOMAL), **levels(AUTOSOMAL)})
    assert not code
    assert sums["ww"].shape == (FOLDS, 54, 54)
    for leave in (-1, 0, 1, 2):
        asked = {**design(), **offset(AUTOSOMAL, np.full((len(AUTOSOMAL), FOLDS), 0.01), leave), "theta": np.zeros(2)}
        assert not centre.ask("null", part([]), asked)[0]


@pytest.mark.parametrize(
    "here",
    [AUTOSOMAL[10:30], AUTOSOMAL[:10], AUTOSOMAL[5:45], [*AUTOSOMAL[:20], *AUTOSOMAL[40:60]], AUTOSOMAL[:30], [0, 300]],
)
def test_products_of_other_pairs_than_within_blocks_are_refused(centre: Centre, here: list[int]) -> None:
    asked = {**design(), **blocked(AUTOSOMAL), "frequency": np.full(len(here), 0.3)}
    assert centre.ask("blocks", part(here), asked) == ("not-of-the-plan", {})


def test_a_variant_is_in_one_block_whatever_it_is_called(centre: Centre) -> None:
    again = [*AUTOSOMAL[:20], *AUTOSOMAL[:20]]
    mixed = [*AUTOSOMAL[:20], *AUTOSOMAL[200:220], *AUTOSOMAL[20:40]]
    for run, chosen in enumerate((again, [*AUTOSOMAL[20:40], *AUTOSOMAL[:20]], mixed), 2):
        asked = {**design(), **blocked(chosen), "frequency": np.full(20, 0.3)}
        assert centre.ask("blocks", part(chosen[:20]), asked, run)[0] == "not-of-the-plan"
    lines = panel(AUTOSOMAL[:20])["panel"].tobytes().decode()
    renamed = np.frombuffer((lines + lines.replace("1\t1", "1\t9")).encode(), np.uint8)  # farther positions, the same names
    asked = {**design(), **blocked(again), "poly_panel": renamed, "frequency": np.full(20, 0.3)}
    assert centre.ask("blocks", part(AUTOSOMAL[:20]), asked)[0] == "not-of-the-plan"


def test_another_plan_in_the_run_or_too_many_over_runs_are_refused(centre: Centre) -> None:
    """A fold has 112 persons: five plans of blocks of 20, and not a sixth, and the first one again."""

    def plan(shift: int, run: int) -> str:
        chosen = AUTOSOMAL[shift:]
        asked = {**design(), **blocked(chosen), "frequency": np.full(BLOCK, 0.3)}
        return centre.ask("blocks", part(chosen[:BLOCK]), asked, run)[0]

    assert not plan(0, 1)
    assert plan(1, 1) == "replayed"
    assert [plan(shift, shift + 1) for shift in range(1, 5)] == ["", "", "", ""]
    assert plan(5, 6) == "too-few-persons"
    assert not plan(0, 7)
    centre.gate = Gate(centre.gate.site, centre.gate.site.state)  # a restart forgets nothing
    assert plan(6, 8) == "too-few-persons"


def test_more_predictions_than_persons_of_a_fold_are_refused(centre: Centre) -> None:
    """A fold has 112 persons: two sets of 54 predictions, and not a third in another run; and not one set of 180."""

    def level(weight: float, run: int, blocks: int | None = None) -> str:
        return centre.ask("level", part([]), {**design(), **blocked(AUTOSOMAL), **levels(AUTOSOMAL, blocks, weight)}, run)[0]

    assert level(0.1, 1, 60) == "too-few-persons"
    assert not level(0.1, 2)
    assert level(0.2, 2) == "replayed"
    assert not level(0.2, 3)
    assert level(0.3, 4) == "too-few-persons"
    assert not level(0.1, 5)


def test_predictions_are_of_the_blocks(centre: Centre) -> None:
    code, _ = centre.ask("level", part([]), {**design(), **blocked(AUTOSOMAL), **levels(AUTOSOMAL, 20)})
    assert code == "undeclared-record"


def test_variants_of_few_carriers_in_a_fold_are_not_used(worlds: tuple[Path, dict[str, World]], centre: Centre) -> None:
    """With ``min_count`` = 60 some folds have too few carriers of common alleles."""
    site = centre.gate.site.file
    text = site.read_text()
    try:
        site.write_text(text + "min_count = 50\n")
        code, sums = centre.ask("folds", part(AUTOSOMAL), design())
        assert not code
        used = sums["used"].astype(bool)
        assert 0 < used.sum() < len(used)
        refused = [at for at, yes in zip(AUTOSOMAL, used, strict=True) if not yes][:BLOCK]
        asked = {**design(), **blocked(refused), "frequency": np.full(len(refused), 0.3)}
        assert centre.ask("blocks", part(refused), asked)[0] == "too-few-persons"
        asked = {**design(), **offset(refused, np.full((len(refused), FOLDS), 0.01)), "theta": np.zeros(2)}
        assert centre.ask("null", part([]), asked)[0] == "too-few-persons"
    finally:
        site.write_text(text)


def test_an_offset_is_fixed_within_a_run(centre: Centre) -> None:
    """Another offset would give another product of the genotypes: of the trait less the offset, with each variant."""
    one, other = np.full((len(AUTOSOMAL), FOLDS), 0.01), np.eye(len(AUTOSOMAL), FOLDS)
    assert not centre.ask("null", part([]), {**design(), **offset(AUTOSOMAL, one), "theta": np.zeros(2)})[0]
    assert centre.ask("null", part([]), {**design(), **offset(AUTOSOMAL, other), "theta": np.zeros(2)})[0] == "replayed"
    here = part(AUTOSOMAL[:10])
    asked = {**design(), **offset(AUTOSOMAL, other), "theta": np.zeros(2), "frequency": np.full(10, 0.3)}
    assert centre.ask("association", here, asked)[0] == "replayed"
    assert centre.ask("null", part([]), {**design(), **offset(AUTOSOMAL, one, 5), "theta": np.zeros(2)})[0] == "bad-message"


def test_men_alone_have_no_folds_of_their_own(centre: Centre) -> None:
    assert centre.ask("folds", part(AUTOSOMAL), {**design(), "everyone": np.zeros(1, np.uint8)})[0] in (
        "not-of-the-plan",
        "too-few-persons",
    )


@pytest.mark.parametrize("centre", [BINARY], indirect=True)
@pytest.mark.parametrize("size", [3.0, 30.0, 1e4])
def test_an_offset_that_leaves_few_persons_is_refused(centre: Centre, worlds: tuple[Path, dict[str, World]], size: float) -> None:
    """The weights p (1 - p) of all who do not have a person's genotypes vanish."""
    own = np.nan_to_num(worlds[1][BINARY].dosage[np.flatnonzero(worlds[1][BINARY].site == 2)[7]][AUTOSOMAL])
    weights = size * np.repeat(((own - 1) / len(own))[:, None], FOLDS, axis=1) * 20
    theta = np.array([-float((weights[:, 0] * (own - 0.6)).sum()), 0.0])  # that person's log-odds are 0
    asked = {**design(), **offset(AUTOSOMAL, weights), "theta": theta}
    assert centre.ask("null", part([]), asked)[0] == "too-few-persons"
    here = AUTOSOMAL[:10]
    assert centre.ask("association", part(here), {**asked, "frequency": np.full(10, 0.3)})[0] == "too-few-persons"
    fit = {k: v for k, v in asked.items() if k != "theta"} | {"frequency": np.full(10, 0.3), "penalised": np.zeros(1, np.uint8)}
    fit |= {"theta_fit": np.tile(np.append(theta, 0.0)[:, None], 10), "inverse": np.zeros((6, 10))}
    code, sums = centre.ask("fit", part(here), fit)
    assert code or not sums["used"].any()


@pytest.mark.parametrize("centre", [BINARY], indirect=True)
def test_coefficients_of_level_one_that_leave_few_persons_are_refused(centre: Centre) -> None:
    fits, columns = 4, 54
    asked = {**design(), **blocked(AUTOSOMAL), **levels(AUTOSOMAL), "theta": np.zeros(2), "constant": np.zeros(fits)}
    asked |= {"fold": np.arange(fits, dtype=np.int64) % FOLDS}
    assert not centre.ask("ridge", part([]), {**asked, "beta": np.zeros((columns, fits))})[0]
    beta = np.random.default_rng(1).normal(size=(columns, fits)) * 1e3
    assert centre.ask("ridge", part([]), {**asked, "beta": beta})[0] == "too-few-persons"
    assert (
        centre.ask("ridge", part([]), {**asked, "beta": np.zeros((columns, fits)), "constant": np.full(fits, 1e3)})[0] == "too-few-persons"
    )
    # 450 persons: as many gradients, and no more.
    codes = [centre.ask("ridge", part([]), {**asked, "beta": np.full((columns, fits), k * 1e-6)})[0] for k in range(1, 130)]
    assert codes.count("") < 450 // fits
    assert codes[-1] == "too-few-persons"


def test_a_study_without_the_section_has_no_such_steps(worlds: tuple[Path, dict[str, World]], tmp_path: Path) -> None:
    shutil.copytree(worlds[0] / NUMBER / "utrecht", tmp_path / "utrecht")
    centre = Centre(tmp_path / "utrecht", worlds[1][NUMBER].study(polygenic=None))
    assert centre.ask("folds", part(AUTOSOMAL), design())[0] == "undeclared-record"
    asked = {**design(), **offset(AUTOSOMAL, np.zeros((len(AUTOSOMAL), FOLDS))), "theta": np.zeros(2)}
    assert centre.ask("null", part([]), asked)[0] == "undeclared-record"
