"""Features of a frozen encoder: equal to the encoder applied to each tile, computed once, kept whole or not at all, pinned."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import read_cohort
from fedml.cohort.persons import Cohort, select
from fedml.cohort.slides.features import SlideFeatures, read_features
from fedml.errors import InputError
from fedml.learning.statistics import cohort_sums
from fedml.modalities.registry import pool
from fedml.networks.frozen import FrozenEncoder, _headless, build_encoder
from fedml.study.read import read_study
from fedml.study.study import Study, parse_study
from fedml.study.tiles import Encoder
from tests.command import quick as command
from tests.conftest import federate, make_study, pooled, to_toml, write_csv, write_manifest
from tests.experiments.studies.test_slide_run import SIDE, SPEC, slide_changes, slide_plan, slide_site, tissue, write_tiff

NET = {"net": "cnn", "untrained": True}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def study_of(encoder: dict[str, Any], **changes: Any) -> Study:
    return make_study(("image",), **slide_changes(cohort__image={"tiles": {**SPEC, "encoder": encoder}}, model__image={"pooling": "attention"}, **changes))  # fmt: skip  # noqa: E501


def features_of(cohort: Cohort) -> SlideFeatures:
    found = cohort.input("image", SlideFeatures)
    assert found is not None
    return found


def weights(path: Path, net: str = "cnn", seed: int = 0, size: int = SIDE, **also: torch.Tensor) -> dict[str, torch.Tensor]:
    """A file of random weights of an encoder; the weights."""
    torch.manual_seed(seed)
    network, _ = _headless(Encoder(net=net, untrained=True), size)
    arrays = {name: torch.randn_like(value) if value.is_floating_point() else value for name, value in network.state_dict().items()}
    arrays = {name: value.abs() if "running_var" in name else value for name, value in arrays.items()} | also
    torch.save(arrays, path) if path.suffix == ".pt" else save_file(arrays, path)
    return arrays


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def with_encoder(folder: Path, file: str) -> Path:
    return write_manifest(folder, folder.name, image=f'{{ path = "slides", format = "slide", encoder = "{file}" }}')


@pytest.mark.parametrize("name", ["encoder.safetensors", "encoder.pt"])
def test_features_are_those_of_the_network_on_each_tile(tmp_path: Path, name: str) -> None:
    """The network is built here by hand, with the weights of the file, and sees the pixels that the file of the slide has."""
    slide_site(tmp_path / "a", "a", 4, 1)
    arrays = weights(tmp_path / "a" / name)
    site = with_encoder(tmp_path / "a", name)
    cohort = read_cohort(read_site(site), study_of({"net": "cnn", "sha256": digest(tmp_path / "a" / name)}))
    found = features_of(cohort)
    layers: list[torch.nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [torch.nn.Conv2d(before, after, 3, padding=1), torch.nn.BatchNorm2d(after), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
    network = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    network.load_state_dict(arrays)
    mean, spread = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for row in range(len(cohort)):
        tiles = torch.cat(list(found.slides.bag(np.array([row])))).float() / 255
        with torch.no_grad():
            expected = network((tiles - mean) / spread)
        batch = found.tensors(np.array([row]), None)
        assert batch["image"].shape == (60 if row == 0 else 30, 64)
        torch.testing.assert_close(batch["image"], expected, rtol=2**-10, atol=1e-3)
        assert torch.equal(batch["image"], batch["image"].half().float())
    total = np.concatenate([array.astype(np.float64) for array in found.arrays])
    np.testing.assert_allclose(found.sums(np.arange(4)), [[len(total)] * 64, total.sum(0), (total**2).sum(0)])


def test_they_are_computed_once_and_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, study = read_site(slide_site(tmp_path / "a", "a", 4, 1)), study_of(NET)
    before = features_of(read_cohort(site, study))
    calls = []
    encode = FrozenEncoder.__call__
    monkeypatch.setattr(FrozenEncoder, "__call__", lambda self, tiles: calls.append(len(tiles)) or encode(self, tiles))
    again = features_of(read_cohort(site, study))
    assert calls == []
    for one, other in zip(before.arrays, again.arrays, strict=True):
        np.testing.assert_array_equal(one, other)
    (place,) = (tmp_path / "a" / ".fedml" / "cache" / "features").iterdir()
    files = sorted(place.iterdir())
    assert len(files) == 5
    assert {path.suffix for path in files} == {".npy"}
    data = files[0].read_bytes()
    for damaged in (b"", data[:-2], data[:-2] + b"\x00\x7c"):  # empty, torn, another number
        files[0].write_bytes(damaged)
        read_cohort(site, study)
        assert files[0].read_bytes() == data
    assert sum(calls) in (3 * 30, 90)
    calls.clear()
    read_cohort(site, study_of({**NET, "mean": [0.5, 0.5, 0.5]}))  # another preparation is another encoder
    assert sum(calls) == 150
    write_tiff(tmp_path / "a" / "slides" / "a002.tif", tissue(np.random.default_rng(9), True))
    calls.clear()
    read_cohort(site, study)
    assert sum(calls) == 30  # the slide that changed
    read_cohort(site, study_of({**NET, "mean": [0.4, 0.5, 0.5]}))
    assert len(list((tmp_path / "a" / ".fedml" / "cache" / "features").iterdir())) == 2


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    site, study = read_site(slide_site(tmp_path / "a", "a", 3, 1)), study_of(NET)
    found = features_of(read_cohort(site, study))
    encoder = build_encoder(Encoder(**NET), SIDE, weights=None, seed=study.study.seed)
    (tmp_path / "file").write_text("")
    kept = read_features(found.slides, encoder, cache=tmp_path / "file", say=print)
    for one, other in zip(found.arrays, kept.arrays, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("net", ["resnet18", "densenet121", "efficientnet_b0", "gabor"])
def test_the_features_are_what_the_last_layer_gets(net: str) -> None:
    """The whole network with a last layer that copies its first two inputs."""
    from fedml.networks.image import NETWORKS
    from fedml.study.sections import ImageNetwork

    spec = Encoder(net=net, untrained=net != "gabor", mean=(0, 0, 0), spread=(1, 1, 1))
    encoder = build_encoder(spec, 64, weights=None, seed=3)
    whole = NETWORKS[net](ImageNetwork(norm="batch"), (3, 64, 64), 2).eval()
    whole.load_state_dict(encoder._network.state_dict(), strict=False)
    last = [module for module in whole.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
        last.weight[0, 0] = last.weight[1, 1] = 1.0
    tiles = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), np.uint8)
    with torch.no_grad():
        expected = whole(torch.from_numpy(tiles).float() / 255)
    torch.testing.assert_close(torch.from_numpy(encoder(tiles)[:, :2]).float(), expected, rtol=2e-3, atol=1e-6)


def test_an_untrained_encoder_is_the_same_everywhere_and_the_digest_is_of_all_that_matters() -> None:
    one, same = (build_encoder(Encoder(**NET), SIDE, weights=None, seed=5) for _ in range(2))
    assert one.digest == same.digest
    assert one.digest.hex() == "fc7e1bbe0f8955334a10a80745e51e82c473c650ff881425ad33beed19549e05"  # on any machine
    others = [
        build_encoder(Encoder(**NET), SIDE, weights=None, seed=6),
        build_encoder(Encoder(**NET, mean=(0, 0, 0)), SIDE, weights=None, seed=5),
        build_encoder(Encoder(net="resnet10", untrained=True), SIDE, weights=None, seed=5),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 4


@pytest.mark.parametrize(
    ("encoder", "text"),
    [
        ({"net": "cnn"}, "an encoder without trained weights gives features by chance; name its weights"),
        ({"net": "cnn", "untrained": True, "sha256": "0" * 64}, "untrained = true and a file of weights are given"),
        ({"net": "gabor", "untrained": True}, 'net "gabor" has no weights'),
        ({"net": "cnn", "sha256": "x"}, "sha256"),
    ],
)
def test_an_encoder_without_known_weights_is_refused(encoder: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        study_of(encoder)


def test_what_cannot_go_together_is_refused() -> None:
    with pytest.raises(InputError, match="stain changes pixels, and with"):
        study_of(NET, training__augment={"stain": 0.05})
    with pytest.raises(InputError, match='net = "resnet18" reads pixels'):
        make_study(("image",), **slide_changes(cohort__image={"tiles": {**SPEC, "encoder": NET}}, model__image={"net": "resnet18"}))
    assert study_of(NET).model.image.net == "mlp"
    assert parse_study(study_of(NET).canonical).sha256 == study_of(NET).sha256


def test_a_site_s_file_is_the_pinned_one_or_the_site_says_what_is_wrong(tmp_path: Path) -> None:
    slide_site(tmp_path / "a", "a", 3, 1)
    file = tmp_path / "a" / "e.safetensors"
    weights(file)
    pinned = study_of({"net": "cnn", "sha256": digest(file)})
    with pytest.raises(InputError, match=r"this site names no file; give its path as data.image encoder in .*site.toml"):
        read_cohort(read_site(tmp_path / "a"), pinned)
    site = read_site(with_encoder(tmp_path / "a", "e.safetensors"))
    assert features_of(read_cohort(site, pinned)).width == 64
    with pytest.raises(InputError, match=r"e.safetensors: lacks \d+ of \d+ weights of net \"resnet10\""):
        read_cohort(site, study_of({"net": "resnet10", "sha256": digest(file)}))
    weights(file, seed=1)
    with pytest.raises(InputError, match=r"e.safetensors: is not the file that the study pins"):
        read_cohort(site, pinned)
    file.unlink()
    with pytest.raises(InputError, match=r"e.safetensors: cannot be read"):
        read_cohort(site, pinned)


def test_a_file_is_data_and_no_code(tmp_path: Path) -> None:
    """A pickle that would run a command is not run, whatever its digest."""
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "run",)

    for name, data in (("plain.pt", pickle.dumps(Evil())), ("none.pt", b""), ("text.safetensors", b"12345678{nothing")):
        (tmp_path / name).write_bytes(data)
    torch.save({"state_dict": Evil()}, tmp_path / "zip.pt")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    weights(tmp_path / "nan.pt", extra=torch.zeros(1))
    arrays = torch.load(tmp_path / "nan.pt", weights_only=True)
    arrays["0.weight"][0] = torch.nan
    torch.save(arrays, tmp_path / "nan.pt")
    for path in tmp_path.iterdir():
        with pytest.raises(InputError, match=path.name):
            build_encoder(Encoder(net="cnn", sha256=digest(path)), SIDE, weights=path, seed=0)
    assert not (tmp_path / "run").exists()


def test_features_beyond_half_precision_are_no_features(tmp_path: Path) -> None:
    arrays = weights(tmp_path / "e.pt")
    torch.save({name: value * 1e3 if "weight" in name else value for name, value in arrays.items()}, tmp_path / "e.pt")
    encoder = build_encoder(Encoder(net="cnn", sha256=digest(tmp_path / "e.pt")), SIDE, weights=tmp_path / "e.pt", seed=0)
    with pytest.raises(InputError, match="half precision ends at"):
        encoder(np.full((1, 3, SIDE, SIDE), 200, np.uint8))


def test_persons_keep_their_features_and_sites_are_pooled(tmp_path: Path) -> None:
    cohorts = [read_cohort(read_site(slide_site(tmp_path / n, n, 5, s)), study_of(NET)) for n, s in (("a", 1), ("b", 2))]
    both = pool(cohorts, study_of(NET))
    own = {(c.site, i): c[k]["image"] for c in cohorts for k, i in enumerate(c.ids)}
    for k, name in enumerate(both.ids):
        assert torch.equal(both[k]["image"], own[tuple(name.split("/"))])  # type: ignore[index]
    few = select(both, np.array([0, 3, 7]))
    assert [few[k]["image"].shape[0] for k in range(3)] == [60, 30, 30]
    assert torch.equal(few[2]["image"], both[7]["image"])
    total = sum(cohort_sums(c, "classification")["preprocess.image"] for c in cohorts)
    np.testing.assert_allclose(cohort_sums(both, "classification")["preprocess.image"], total)


def test_two_sites_give_what_one_gives(tmp_path: Path) -> None:
    """With one step a round over all tiles, FedAvg on features is gradient descent on the pooled persons."""
    sites = [slide_site(tmp_path / n, n, k, s) for n, k, s in (("a", 8, 1), ("b", 6, 2))]
    full = make_study(
        ("image",), **slide_changes(
            cohort__image={"tiles": {**SPEC, "per_step": 100, "encoder": NET}}, model__image={"pooling": "attention"},
            training__optimizer="sgd", training__lr=0.1, training__batch_size=0,
        ),
    )  # fmt: skip
    apart, together = federate(full, sites, tmp_path / "r3"), pooled(full, sites, tmp_path / "r4")
    assert apart.shape == (64,)
    for name, values in apart.learned().items():
        torch.testing.assert_close(values, together.learned()[name], rtol=1e-4, atol=1e-5)


def test_a_study_file_pins_the_weights_that_it_names(tmp_path: Path) -> None:
    weights(tmp_path / "e.safetensors")
    plan = slide_plan(cohort__image={"tiles": {**SPEC, "encoder": {"net": "cnn", "weights": "e.safetensors"}}})
    plan["model"].pop("image")
    (tmp_path / "study.toml").write_text(to_toml(plan))
    study = read_study(tmp_path / "study.toml")
    assert study.cohort.image is not None
    assert study.cohort.image.tiles is not None
    assert study.cohort.image.tiles.encoder == Encoder(net="cnn", sha256=digest(tmp_path / "e.safetensors"))
    (tmp_path / "e.safetensors").unlink()
    with pytest.raises(InputError, match=r"e.safetensors: cannot be read"):
        read_study(tmp_path / "study.toml")


def test_the_commands_say_it_in_one_sentence(tmp_path: Path) -> None:
    """A user who only names a network is told what is missing; a site sees its tiles and features."""
    slide_site(tmp_path / "sites" / "a", "a", 24, 1)
    slide_site(tmp_path / "sites" / "b", "b", 24, 2)
    write_csv(tmp_path / "unused.csv", ["x"], {"y": np.zeros(1)})
    for encoder, code in (({"net": "cnn"}, 2), (NET, 0)):
        plan = slide_plan(cohort__image={"tiles": {**SPEC, "quality": {}, "encoder": encoder}}, federation__rounds=1)
        plan["model"].pop("image")
        (tmp_path / "study.toml").write_text(to_toml(plan))
        done = command("fedml", "check", "study.toml", cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        if code:
            assert "an encoder without trained weights gives features by chance" in " ".join(done.stderr.split())
        else:
            assert "UNTRAINED: random weights" in " ".join(done.stdout.split())
    seen = command("fedml-site", "check", "study.toml", "--site", "sites/b", cwd=tmp_path)
    assert seen.returncode == 0, seen.stderr
    text = " ".join(seen.stdout.split())
    assert "features: 64 of each tile, computed once" in text
    assert "tiles left out by [cohort.image.tiles.quality]: 0 for pen" in text
