"""Every option of ``[training]``: a run at one site against a plain PyTorch loop, written from torch's documentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler, swa_utils
from torch.utils.data import WeightedRandomSampler

from fedml.errors import InputError
from fedml.seeds import derive_seed
from fedml.study.study import Study
from tests.conftest import federate, make_study, write_csv, write_manifest

ROUNDS, PERSONS, TRAIN = 6, 90, 54
COHORT = {"inputs": ["clinical"], "target": "y", "classes": [0, 1, 2], "clinical": {"columns": ["x1", "x2"], "indicate": False}}


class Site:
    """A site on disk and its training persons as tensors, standardised by NumPy over all sites."""

    def __init__(self, folder: Path, name: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.normal([2, -1], [1, 3], (PERSONS, 2))
        self.y = (self.x[:, 0] + rng.normal(0, 1, PERSONS) > 2.2).astype(int)
        self.y[3::7] = 2  # a rare class
        self.part = np.array((["train"] * 9 + ["val"] * 3 + ["test"] * 3) * 6)
        folder.mkdir(parents=True)
        ids = [f"{name}{k:03d}" for k in range(PERSONS)]
        write_csv(folder / "persons.csv", ids, {"y": self.y})
        write_csv(folder / "split.csv", ids, {"part": self.part})
        write_csv(folder / "clinical.csv", ids, {"x1": self.x[:, 0], "x2": self.x[:, 1]})
        self.name = name
        self.manifest = write_manifest(folder, name, split='"split.csv"', clinical='{ path = "clinical.csv" }')


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Site]:
    folder = tmp_path_factory.mktemp("options")
    return [Site(folder / name, name, seed) for seed, name in enumerate("ab")]


def persons(sites: Sequence[Site], part: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
    rows = [site.part == "train" for site in sites]
    known = np.concatenate([site.x[row] for site, row in zip(sites, rows, strict=True)])
    wanted = [site.part == part for site in sites]
    x = np.concatenate([site.x[row] for site, row in zip(sites, wanted, strict=True)])
    y = np.concatenate([site.y[row] for site, row in zip(sites, wanted, strict=True)])
    return torch.tensor((x - known.mean(0)) / known.std(0), dtype=torch.float32), torch.tensor(y)


def study_of(sites: Sequence[Site], training: dict[str, Any], **changes: Any) -> Study:
    changes = {"federation__rounds": ROUNDS, **changes}
    return make_study(sites=[site.name for site in sites], cohort=COHORT, training={"evaluate_every": 0, **training}, **changes)


Orders = Callable[[int], Iterator[torch.Tensor]]  # round -> rows of each step
ALL: Orders = lambda number: iter([torch.arange(TRAIN)])  # noqa: E731


def first(sites: Sequence[Site], folder: Path) -> nn.Linear:
    """The study's first weights, saved by a run of no rounds."""
    arrays = federate(study_of(sites, {}, federation__rounds=0), [s.manifest for s in sites], folder / "first").arrays
    layer = nn.Linear(2, 3)
    layer.load_state_dict({"weight": arrays["encoder.clinical.weight"].clone(), "bias": arrays["encoder.clinical.bias"].clone()})
    return layer


def rates(make: Callable[[torch.optim.Optimizer], Any], lr: float) -> list[float]:
    """The learning rate of each round by a scheduler of torch's that steps once a round."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, found = make(optimizer), []
    for _ in range(ROUNDS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def reference(
    layer: nn.Linear, data: tuple[torch.Tensor, torch.Tensor], optimizer: Callable[..., torch.optim.Optimizer], orders: Orders = ALL,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = functional.cross_entropy, **more: Any,
) -> nn.Module:  # fmt: skip
    """The plain loop. ``more``: rates (of each round), clip, kept (one optimiser for all rounds), ema."""
    made, lr = optimizer(layer.parameters()), more.get("rates")
    average = swa_utils.AveragedModel(layer, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(more["ema"])) if "ema" in more else None
    for number in range(ROUNDS):
        made = made if more.get("kept") else optimizer(layer.parameters())
        if lr is not None:
            made.param_groups[0]["lr"] = lr[number]
        for rows in orders(number):
            made.zero_grad()
            loss(layer(data[0][rows]), data[1][rows]).backward()
            if "clip" in more:
                nn.utils.clip_grad_norm_(layer.parameters(), more["clip"])
            made.step()
        if average is not None:
            average.update_parameters(layer)
    return layer if average is None else average.module


def shuffled(site: str, steps: int, size: int) -> Orders:
    """Passes in random orders, one after the other, until so many steps are done; the last batch of a pass is smaller."""

    def orders(number: int) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(derive_seed("training", 0, number + 1, site))
        left: list[torch.Tensor] = []
        for _ in range(steps):
            left = left or list(torch.randperm(TRAIN, generator=generator).split(size))
            yield left.pop(0)

    return orders


def drawn(site: str, y: torch.Tensor, size: int) -> Orders:
    """One pass of torch's sampler with weights inverse to the classes' sizes."""

    def orders(number: int) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(derive_seed("training", 0, number + 1, site))
        each = 1 / torch.bincount(y).double()[y]
        yield from torch.tensor(list(WeightedRandomSampler(each.tolist(), len(y), replacement=True, generator=generator))).split(size)

    return orders


def focal(output: torch.Tensor, y: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    p = output.softmax(1)[torch.arange(len(y)), y]
    return (-((1 - p) ** gamma) * p.log()).mean()


WEIGHTS = torch.tensor([0.5, 1.0, 4.0])


def weighted(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (WEIGHTS[y] * functional.cross_entropy(output, y, reduction="none")).mean()


def sgd(**options: Any) -> Callable[..., torch.optim.Optimizer]:
    return lambda p: torch.optim.SGD(p, **{"lr": 0.3, **options})


def warm_cosine(optimizer: torch.optim.Optimizer) -> Any:
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / 3, total_iters=2)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=ROUNDS - 2, eta_min=0.03)
    return lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[2])


PLAIN = {"optimizer": "sgd", "lr": 0.3, "batch_size": 0}
CASES: dict[str, tuple[dict[str, Any], Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "local_steps": ({**PLAIN, "batch_size": 8, "local_steps": 11}, sgd(), {"orders": shuffled("a", 11, 8)}),
    "fewer local_steps than a pass": ({**PLAIN, "batch_size": 8, "local_steps": 2}, sgd(), {"orders": shuffled("a", 2, 8)}),
    "cosine with warm-up": (
        {**PLAIN, "schedule": {"kind": "cosine", "warmup": 2, "lowest": 0.1}}, sgd(), {"rates": rates(warm_cosine, 0.3)},
    ),
    "step": (
        {**PLAIN, "schedule": {"kind": "step", "every": 2, "factor": 0.5}}, sgd(),
        {"rates": rates(lambda o: lr_scheduler.StepLR(o, step_size=2, gamma=0.5), 0.3)},
    ),
    "max_norm": ({**PLAIN, "max_norm": 0.05}, sgd(), {"clip": 0.05}),
    "nesterov": (
        {**PLAIN, "local_epochs": 3, "momentum": 0.9, "nesterov": True}, sgd(momentum=0.9, nesterov=True),
        {"orders": lambda number: iter([torch.arange(TRAIN)] * 3)},
    ),
    "rmsprop": (
        {**PLAIN, "optimizer": "rmsprop", "lr": 0.02, "momentum": 0.5, "weight_decay": 0.1},
        lambda p: torch.optim.RMSprop(p, lr=0.02, momentum=0.5, weight_decay=0.1), {},
    ),
    "label_smoothing": ({**PLAIN, "label_smoothing": 0.2}, sgd(), {"loss": nn.CrossEntropyLoss(label_smoothing=0.2)}),
    "class_weights": ({**PLAIN, "class_weights": WEIGHTS.tolist()}, sgd(), {"loss": weighted}),
    "focal": ({**PLAIN, "focal": 2.0}, sgd(), {"loss": focal}),
    "ema": ({**PLAIN, "ema": 0.7}, sgd(), {"ema": 0.7}),
    "keep_optimizer of Adam": (
        {"optimizer": "adam", "lr": 0.1, "batch_size": 0, "keep_optimizer": True}, lambda p: torch.optim.Adam(p, lr=0.1), {"kept": True},
    ),
    "keep_optimizer of SGD": ({**PLAIN, "momentum": 0.9, "keep_optimizer": True}, sgd(momentum=0.9), {"kept": True}),
    "keep_optimizer of RMSprop": (
        {**PLAIN, "optimizer": "rmsprop", "lr": 0.02, "keep_optimizer": True}, lambda p: torch.optim.RMSprop(p, lr=0.02), {"kept": True},
    ),
}  # fmt: skip


def far(found: dict[str, torch.Tensor], layer: nn.Module) -> float:
    wanted = {f"encoder.clinical.{key}": value for key, value in layer.state_dict().items()}
    assert found.keys() == wanted.keys()
    return max(float((found[key] - value).abs().max()) for key, value in wanted.items())


@pytest.mark.parametrize("name", CASES)
def test_an_option_equals_a_plain_loop(name: str, sites: list[Site], tmp_path: Path) -> None:
    training, optimizer, more = CASES[name]
    site, data = sites[:1], persons(sites[:1])
    run = federate(study_of(site, training), [site[0].manifest], tmp_path / "run")
    assert far(run.learned(), reference(first(site, tmp_path), data, optimizer, **more)) < 1e-6
    less = {key: value for key, value in more.items() if key == "orders" and name == "nesterov"}
    plain = sgd(momentum=training.get("momentum", 0.0)) if training["optimizer"] == "sgd" else optimizer
    if "optimizer" not in name or training["optimizer"] != "sgd":  # the option does something
        assert name == "rmsprop" or far(run.learned(), reference(first(site, tmp_path / "2"), data, plain, **less)) > 1e-4


def test_balanced_sampling_is_torchs_weighted_sampler(sites: list[Site], tmp_path: Path) -> None:
    site, (x, y) = sites[:1], persons(sites[:1])
    run = federate(study_of(site, {**PLAIN, "batch_size": 8, "sampling": "balanced"}), [site[0].manifest], tmp_path / "run")
    assert far(run.learned(), reference(first(site, tmp_path), (x, y), sgd(), drawn("a", y, 8))) < 1e-6


def test_inverse_weights_of_two_sites_are_those_of_their_pooled_persons(sites: list[Site], tmp_path: Path) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    x, y = persons(sites)
    each = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=y.numpy()), dtype=torch.float32)

    def loss(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return (each[label] * functional.cross_entropy(output, label, reduction="none")).mean()

    run = federate(study_of(sites, {**PLAIN, "class_weights": "inverse"}), [s.manifest for s in sites], tmp_path / "run")
    assert far(run.learned(), reference(first(sites, tmp_path), (x, y), sgd(), lambda n: iter([torch.arange(len(y))]), loss)) < 1e-6


def test_keep_best_gives_the_weights_of_the_best_round_and_patience_ends_the_run(sites: list[Site], tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    site, data, held = sites[:1], persons(sites[:1]), persons(sites[:1], "val")
    training = {**PLAIN, "lr": 8.0, "evaluate_every": 1}
    scores, models = [], []
    layer = first(site, tmp_path)
    for number in range(ROUNDS):  # the models after rounds 1 to 5 are compared; the last is not evaluated in a round
        optimizer = torch.optim.SGD(layer.parameters(), lr=8.0)
        functional.cross_entropy(layer(data[0]), data[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
        models.append({key: value.clone() for key, value in layer.state_dict().items()})
        scores.append(roc_auc_score(held[1], layer(held[0]).softmax(1).detach(), multi_class="ovr") if number < ROUNDS - 1 else -1.0)
    best = int(np.argmax(scores))
    assert 0 <= best < ROUNDS - 2, "the data of this test must have an early best round"

    run = federate(study_of(site, {**training, "keep": "best"}), [site[0].manifest], tmp_path / "best")
    layer.load_state_dict(models[best])
    assert far(run.learned(), layer) < 1e-5
    assert (run.final["round"], run.final["kept"]) == (ROUNDS, best + 1)

    early = federate(study_of(site, {**training, "keep": "best", "patience": 1}), [site[0].manifest], tmp_path / "early")
    stop = next(n for n in range(3, ROUNDS + 1) if n - 1 - int(np.argmax(scores[: n - 1])) >= 2 or n == ROUNDS)
    assert len(early.rounds) == early.final["round"] == stop
    last = federate(study_of(site, {**training, "patience": 1}), [site[0].manifest], tmp_path / "last")
    assert "kept" not in last.final
    layer.load_state_dict(models[stop - 1])
    assert far(last.learned(), layer) < 1e-5


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "both lengths": ({"training": {"local_steps": 5, "local_epochs": 2}}, "local_steps and local_epochs = 2 exclude each other"),
    "nesterov without momentum": ({"training": {"optimizer": "sgd", "nesterov": True}}, "nesterov needs"),
    "nesterov of Adam": ({"training": {"nesterov": True}}, "nesterov needs"),
    "step without every": ({"training": {"schedule": {"kind": "step"}}}, "every = ROUNDS"),
    "lowest of a step": ({"training": {"schedule": {"kind": "step", "every": 2, "lowest": 0.1}}}, "lowest needs"),
    "a long warm-up": ({"training": {"schedule": {"kind": "cosine", "warmup": 2}}}, "warmup is 2 rounds, [federation] rounds is 2"),
    "an idle schedule": ({"training": {"schedule": {"kind": "constant"}}}, "changes nothing"),
    "focal and smoothing": ({"training": {"focal": 2.0, "label_smoothing": 0.1}}, "focal and label_smoothing exclude"),
    "balanced without batches": ({"training": {"sampling": "balanced", "batch_size": 0}}, "set batch_size"),
    "balanced and weights": ({"training": {"sampling": "balanced", "class_weights": "inverse"}}, "both make up for rare classes"),
    "weights of three classes": ({"training": {"class_weights": [1.0, 2.0, 3.0]}}, "class_weights has 3 numbers, [cohort] classes has 2"),
    "another word": ({"training": {"class_weights": "inverted"}}, "class_weights"),
    "weights of numbers": ({"training": {"class_weights": "inverse"}, "model": {"task": "regression"}}, "needs classes of persons"),
    "a state that is none": ({"training": {"optimizer": "sgd", "keep_optimizer": True}}, "keep_optimizer needs an optimiser with a state"),
    "best of an average": ({"training": {"ema": 0.9, "keep": "best"}}, "ema and keep"),
    "best without metrics": ({"training": {"keep": "best", "evaluate_every": 0}}, "evaluate_every = 1"),
    "best of one round": ({"training": {"keep": "best"}, "federation__rounds": 1}, "rounds of at least 2"),
    "patience below the metrics": ({"training": {"patience": 2, "evaluate_every": 3}}, "patience is 2 rounds"),
    "steps of all rounds": ({"training": {"local_steps": 100_000_000}}, "local_steps times [federation] rounds is 200,000,000"),
}
PATIENT = {"unit": "patient", "noise_multiplier": 1.0, "persons": {"a": 50, "b": 50}, "ranges": {f"x{k}": [0, 1] for k in (1, 2, 3)}}
UNIT = {"unit": "site", "noise_multiplier": 1.0, "ranges": PATIENT["ranges"]}
for unit, privacy in (("patient", PATIENT), ("site", UNIT)):
    REFUSED |= {
        f"inverse, {unit}": ({"training": {"class_weights": "inverse"}, "privacy": privacy}, "exact counts of each class"),
        f"kept state, {unit}": ({"training": {"keep_optimizer": True}, "privacy": privacy}, "keep_optimizer is not built"),
    }
REFUSED |= {
    "balanced, patient": ({"training": {"sampling": "balanced"}, "privacy": PATIENT}, "state class_weights"),
    "clipped twice": ({"training": {"max_norm": 1.0}, "privacy": PATIENT}, "[privacy] clipping_norm"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused_by_its_key(name: str) -> None:
    changes, words = REFUSED[name]
    with pytest.raises(InputError) as caught:
        make_study(**changes)
    assert words in str(caught.value)


def test_an_option_at_its_default_leaves_the_studys_identity() -> None:
    off = {"local_steps": 0, "nesterov": False, "max_norm": 0.0, "label_smoothing": 0.0, "focal": 0.0, "class_weights": [], "ema": 0.0}
    off |= {"sampling": "each", "keep_optimizer": False, "keep": "last", "patience": 0}
    assert make_study(training=off).sha256 == make_study().sha256
    assert len({make_study(training={"local_steps": n}).sha256 for n in (0, 1, 2)}) == 3
    assert make_study(training={"local_steps": 3, "local_epochs": 1}).sha256 == make_study(training={"local_steps": 3}).sha256


# --- privacy of a patient

RANGES = {"x1": [0.0, 4.0], "x2": [-10.0, 8.0]}
QUIET = {"unit": "patient", "noise_multiplier": 1e-6, "clipping_norm": 20.0, "persons": {"a": TRAIN}, "ranges": RANGES}
PRIVATE: dict[str, tuple[dict[str, Any], Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "local_steps": ({**PLAIN, "local_steps": 3}, sgd(), {"orders": lambda number: iter([torch.arange(TRAIN)] * 3)}),
    **{name: CASES[name] for name in ("cosine with warm-up", "nesterov", "rmsprop", "label_smoothing", "class_weights", "focal", "ema")},
}


@pytest.mark.parametrize("name", PRIVATE)
def test_an_option_under_privacy_is_that_of_a_plain_loop_but_for_the_noise(name: str, sites: list[Site], tmp_path: Path) -> None:
    """With almost no noise, no clipping and everybody in each step, DP-SGD is the plain loop; inputs are standardised by stated ranges."""
    training, optimizer, more = PRIVATE[name]
    site = sites[0]
    middle, quarter = (np.array([f(*RANGES[c]) for c in ("x1", "x2")]) for f in (lambda a, b: (a + b) / 2, lambda a, b: (b - a) / 4))
    x, y = (site.x[site.part == "train"] - middle) / quarter, site.y[site.part == "train"]
    run = federate(study_of([site], training, privacy=QUIET), [site.manifest], tmp_path / "run")
    data = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    assert far(run.learned(), reference(first([site], tmp_path), data, optimizer, **more)) < 2e-5


@pytest.mark.parametrize(
    "training", [{"local_steps": 7}, {"local_steps": 7, "schedule": {"kind": "cosine"}, "ema": 0.5}, {"local_epochs": 2}]
)
def test_the_accountant_counts_the_steps_of_the_plan(training: dict[str, Any]) -> None:
    import dp_accounting
    from dp_accounting.pld import pld_privacy_accountant

    from fedml.privacy.releases import claims

    privacy = {**QUIET, "noise_multiplier": 1.5, "persons": {"a": 640}}
    study = make_study(sites=["a"], cohort=COHORT, training={"batch_size": 32, **training}, privacy=privacy, federation__rounds=ROUNDS)
    steps = ROUNDS * training.get("local_steps", 2 * 20)
    event = dp_accounting.PoissonSampledDpEvent(32 / 640, dp_accounting.GaussianDpEvent(1.5))
    wanted = pld_privacy_accountant.PLDAccountant().compose(event, steps).get_epsilon(1e-5)
    assert claims(study)["a"].epsilon == pytest.approx(wanted, rel=2e-3)


def test_a_run_that_metrics_ended_early_claims_the_epsilon_of_all_its_rounds() -> None:
    from fedml.strategies.epsilon import privacy_record

    privacy = {**QUIET, "noise_multiplier": 1.5}
    found = {}
    for patience in (0, 2):
        training = {"patience": patience}
        study = make_study(sites=["a"], cohort=COHORT, training=training, privacy=privacy, federation__rounds=ROUNDS)
        found[patience] = privacy_record(study, {"a": 4}).epsilon, privacy_record(study, {"a": ROUNDS}).epsilon
    assert found[2][0] == found[2][1] == found[0][1] > found[0][0]


# --- few persons


def test_balanced_steps_have_enough_different_persons_and_a_rare_class_is_drawn_less() -> None:
    from fedml.learning.training import balanced_shares, batches

    labels = np.array([0.0] * 95 + [1.0] * 3)
    assert balanced_shares(labels)[-3:].sum() == pytest.approx(balanced_shares(labels)[:95].sum())
    assert float(balanced_shares(labels, 10)[-1]) == pytest.approx(1 / 10)
    rows, drawn = np.arange(98), torch.Generator().manual_seed(1)
    for smallest in (1, 10, 30):
        steps = list(batches(rows, 12, drawn, smallest=smallest, shares=balanced_shares(labels)))
        assert all(len(set(step.tolist())) >= smallest for step in steps)
    assert len(list(batches(rows, 12, drawn, smallest=90, shares=balanced_shares(labels)))) == 1
