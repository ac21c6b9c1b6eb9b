"""Tests of tools/pretrain_backbone.py with a very small model on synthetic images."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from tests.helpers.scripts import TOOLS, load_tool

RECIPE = TOOLS / "recipes" / "icons.toml"
SMALL = [
    "name=tiny.test",
    "model.kwargs={embed_dim = 32, depth = 2, num_heads = 2}",
    "optim.epochs=3",
    "optim.batch_size=16",
    "optim.warmup_epochs=1",
    "run.eval_every=1",
    "run.checkpoint_every=1",
]
CLASSES = {0: ["anchor", "bell", "cat"], 1: ["door", "eye"], 2: ["flag", "gift", "hat", "ink"]}


tool = load_tool("pretrain_backbone")


@pytest.fixture(scope="module", autouse=True)
def _torch_settings() -> Iterator[None]:
    """Undo what the tool sets for the whole process. More threads would not help so small a model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a data file in which every class is a noisy version of its own 8x8 pattern."""
    rng = np.random.default_rng(0)
    rows: list[tuple[int, int, int]] = []
    for part, names in CLASSES.items():
        for label in range(len(names)):
            rows += [(part, label, 0)] * 10 + [(part, label, 1)] * 4
    part, label, split = np.array(rows).T
    patterns = rng.integers(0, 2, (3, 4, 8, 8)).repeat(4, 2).repeat(4, 3) * 200
    images = patterns[part, label] + rng.integers(0, 55, (len(rows), 32, 32))
    buffer = io.BytesIO()
    np.savez(
        buffer,
        images=images.astype(np.uint8),
        label=label.astype(np.int16),
        part=part.astype(np.uint8),
        split=split.astype(np.uint8),
        classes=np.array([name for names in CLASSES.values() for name in names]),
        class_part=np.array([p for p, names in CLASSES.items() for _ in names], np.uint8),
    )
    path = tmp_path_factory.mktemp("data") / "small.npz.xz"
    path.write_bytes(lzma.compress(buffer.getvalue(), preset=0))
    return path


def pretrain(data: Path, out: Path, *more: str) -> None:
    """Run the tool's command line on the CPU."""
    arguments = [
        str(RECIPE),
        "--device",
        "cpu",
        "--out",
        str(out),
        "--set",
        f"data.file={data}",
        *SMALL,
        *more,
    ]
    assert tool.main(arguments) == 0


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("trained")
    pretrain(data, out)
    return out


def test_outputs(trained: Path, data: Path) -> None:
    """Weights, hash and cards agree, and timm loads the weights."""
    card = json.loads((trained / "tiny.test.json").read_text())
    weights = trained / "tiny.test.safetensors"
    state = load_file(weights)
    assert not any(name.startswith("head") for name in state)
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == card["weights"]["file_sha256"]

    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].float().contiguous().numpy().astype("<f4")
        digest.update(name.encode() + repr(tuple(values.shape)).encode() + values.tobytes())
    assert digest.hexdigest() == card["weights"]["weights_hash"]

    model = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=0,
        img_size=32,
        patch_size=8,
        in_chans=1,
        embed_dim=32,
        depth=2,
        num_heads=2,
    )
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 32)

    assert card["data"]["sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert card["data"]["train_images"] == 40
    assert card["class_names"] == CLASSES[2]
    assert [entry["epoch"] for entry in card["history"]] == [1, 2, 3]
    for kind in ("trained", "random_init"):
        assert {"nearest_mean", "linear", "ridge"} <= card["probes"][kind].keys()
    text = (trained / "tiny.test.md").read_text()
    assert card["weights"]["weights_hash"] in text
    for content in (text, json.dumps(card)):
        assert str(data.parent) not in content, "a path of this machine ended up in a card"


def test_resume_gives_the_same_weights(trained: Path, data: Path, tmp_path: Path) -> None:
    """Stopping and resuming changes no byte of the result."""
    pretrain(data, tmp_path, "--stop-after", "2")
    assert not (tmp_path / "tiny.test.safetensors").exists()
    pretrain(data, tmp_path, "--resume", "--skip-probe")
    assert (tmp_path / "tiny.test.safetensors").read_bytes() == (trained / "tiny.test.safetensors").read_bytes()
    assert json.loads((tmp_path / "tiny.test.json").read_text())["probes"] is None
    # A finished run can be probed later, on any part.
    pretrain(data, tmp_path, "--resume", "--set", "data.probe_part=1")
    assert json.loads((tmp_path / "tiny.test.json").read_text())["probes"]["part"] == 1
    with pytest.raises(ValueError, match="another recipe"):
        pretrain(data, tmp_path, "--resume", "--seed", "1")


def test_probe_of_weights_trained_on_a_file_without_the_probe_part(trained: Path, data: Path, tmp_path: Path) -> None:
    """The training part alone gives the same weights, and the whole file fills the card from weights and card only."""
    alone = tmp_path / "alone.npz"
    with np.load(io.BytesIO(lzma.decompress(data.read_bytes()))) as arrays:
        rows, classes = arrays["part"] == 2, arrays["class_part"] == 2
        kept = {name: arrays[name][classes if name in ("classes", "class_part") else rows] for name in arrays.files}
        np.savez(alone, **kept)
    out = tmp_path / "out"
    pretrain(alone, out, "--skip-probe")
    assert (out / "tiny.test.safetensors").read_bytes() == (trained / "tiny.test.safetensors").read_bytes()
    (out / "checkpoint.safetensors").unlink()
    pretrain(data, out, "--probe")
    card, whole = (json.loads((folder / "tiny.test.json").read_text()) for folder in (out, trained))
    assert card["probes"] == whole["probes"]
    assert card["data"]["file"] == "alone.npz"
    assert "nearest class mean" in (out / "tiny.test.md").read_text()
    with pytest.raises(ValueError, match="another recipe"):
        pretrain(data, out, "--probe", "--set", "optim.lr=1e-4")
    with (out / "tiny.test.safetensors").open("r+b") as weights:
        weights.seek(-8, io.SEEK_END)
        weights.write(b"damaged.")
    with pytest.raises(ValueError, match="weights of its card"):
        pretrain(data, out, "--probe")


def test_fit_prints_epochs_and_writes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last line is an override of the recipe; more time gives more epochs."""
    monkeypatch.setattr(tool, "FIT_SECONDS", 0.1)
    counts = []
    for seconds in ("100", "1000"):
        pretrain(data, tmp_path / "out", "--fit", seconds)
        last = capsys.readouterr().out.splitlines()[-1]
        counts.append(tool.load_recipe(RECIPE, [last]).optim.epochs)
    assert 1 < counts[0] < counts[1]
    assert not (tmp_path / "out").exists()


def test_weights_larger_than_the_recipe_permits(data: Path, tmp_path: Path) -> None:
    """The limit is a field of the recipe."""
    with pytest.raises(ValueError, match="max_mib"):
        pretrain(data, tmp_path, "--set", "run.max_mib=0.01")


def test_recipes_of_the_repository() -> None:
    """Every recipe is valid, and the model that it describes has the size that it permits."""
    for path in sorted((TOOLS / "recipes").glob("*.toml")):
        recipe = tool.load_recipe(path)
        assert recipe.name == path.stem or recipe.name.endswith(f".{path.stem}")
        state = tool.create_model(recipe.model, 0, 0).state_dict()
        assert 2 * sum(tensor.numel() for tensor in state.values()) < recipe.run.max_mib * 2**20


def test_recipe_errors() -> None:
    """Misspelt fields and wrong types are reported, not ignored."""
    for override, message in (
        ("optim.learning_rate=1", "optim.learning_rate"),
        ("optim.lr=fast", "optim.lr"),
        ("augment.scale=[1.0]", "augment.scale"),
        ("augment.mixup_prob=1.1", "more than 1"),
        ("data.probe_part=2", "probe part"),
    ):
        with pytest.raises(ValueError, match=message):
            tool.load_recipe(RECIPE, [override])


def test_learning_rate(data: Path) -> None:
    """The rate rises during the warm-up and falls to its minimum."""
    recipe = tool.load_recipe(RECIPE, [*SMALL, f"data.file={data}", "optim.epochs=10"])
    device = torch.device("cpu")
    trainer = tool.Trainer(recipe, tool.DataFile(data).part(2, device), device, "off")
    rates = [trainer.learning_rate(step) for step in range(10 * trainer.steps)]
    peak = int(np.argmax(rates))
    assert peak == trainer.steps
    assert rates[peak] == pytest.approx(recipe.optim.lr)
    assert np.all(np.diff(rates[peak:]) < 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation(channels: int) -> None:
    """Augmented images keep their shape and range, differ within a batch and repeat with the seed."""
    augment = tool.build(
        tool.AugmentRecipe,
        {**vars(tool.load_recipe(RECIPE).augment), "scale": [0.7, 1.2], "contrast": [0.5, 1.0]}
        | {"erase_area": [0.05, 0.2], "saturation": [0.5, 1.5], "brightness": 0.1}
        | {"crop": [0.3, 1.0], "hue": 20.0, "grey_prob": 0.2, "solarise_prob": 0.2},
    )
    device = torch.device("cpu")
    pixels = torch.zeros(32, channels, 32, 32, dtype=torch.uint8)
    pixels[:, :, 8:24, 12:20] = 255

    def run() -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        augmented: torch.Tensor = tool.Augmenter(augment, device, generator)(pixels)
        return augmented

    first = run()
    assert first.shape == pixels.shape
    assert first.dtype == torch.float32
    assert 0 <= first.min() <= first.max() <= 1
    assert len(torch.unique(first.flatten(1), dim=0)) == 32
    assert torch.equal(first, run())


def augmented(pixels: torch.Tensor, **fields: object) -> torch.Tensor:
    """Return uint8 images as a recipe with these fields augments them."""
    recipe = tool.AugmentRecipe(**fields)
    result: torch.Tensor = tool.Augmenter(recipe, torch.device("cpu"), torch.Generator().manual_seed(0))(pixels)
    return result


def test_no_augmentation_is_identity() -> None:
    """With all strengths at their defaults, images are only scaled to 0..1."""
    pixels = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(augmented(pixels), pixels / 255, atol=1e-4, rtol=0)


def test_crops_lie_inside_the_image() -> None:
    """A crop shows a window of the given area and shape, never what lies outside the image."""
    # The first channel is the column, the second the row, as far as a byte holds them.
    ramp = torch.arange(32, dtype=torch.uint8) * 7 + 16
    pixels = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32)]).expand(256, 2, 32, 32)
    x = augmented(pixels, crop=[0.25, 0.5], aspect=1.5, padding="zeros") * 255
    assert x[:, :, 1:-1, 1:-1].min() >= 16 - 1e-2
    assert x.max() <= ramp.max() + 1e-2
    # Slopes in the middle of the crop are its sides as shares of those of the image.
    width = (x[:, 0, 16, 20] - x[:, 0, 16, 12]) / (8 * 7)
    height = (x[:, 1, 20, 16] - x[:, 1, 12, 16]) / (8 * 7)
    assert (width * height).min() == pytest.approx(0.25, abs=0.01)
    assert (width * height).max() == pytest.approx(0.5, abs=0.01)
    assert (width / height).max() == pytest.approx(1.5, abs=0.03)
    assert (width / height).min() == pytest.approx(1 / 1.5, abs=0.03)
    middle = x[:, 0, 16, 15:17].mean(1)
    assert middle.min() < 90
    assert middle.max() > 165


def test_colours() -> None:
    """A rotation of the hue keeps brightness and distance from grey, grey images have no colour, light is inverted."""
    pixels = torch.randint(96, 160, (64, 3, 8, 8), dtype=torch.uint8)
    plain, turned = pixels / 255, augmented(pixels, hue=90.0)
    assert not torch.allclose(plain, turned, atol=0.05)
    torch.testing.assert_close(turned.mean(1), plain.mean(1))
    torch.testing.assert_close(turned.std(1), plain.std(1), atol=1e-4, rtol=0)
    grey = augmented(pixels, grey_prob=1.0)
    torch.testing.assert_close(grey, plain.mean(1, keepdim=True).expand_as(plain))
    torch.testing.assert_close(augmented(pixels, solarise_prob=1.0), plain.minimum(1 - plain))


def test_mixing() -> None:
    """Mixed targets stay distributions and match the mixed area."""
    recipe = tool.AugmentRecipe(mixup_prob=0.4, cutmix_prob=0.4)
    shares = torch.from_numpy(tool.mixing_shares(recipe, 64, np.random.default_rng(0)))
    assert not (shares.prod(1) > 0).any()
    assert (shares <= 0.5).all()
    # Each image is filled with a value of its own, so its target says how bright the mixture is.
    values = torch.arange(64) / 64
    x = values.view(-1, 1, 1, 1).expand(64, 1, 32, 32)
    augment = tool.Augmenter(recipe, torch.device("cpu"), torch.Generator().manual_seed(0))
    mixed, targets = augment.mix(x, torch.eye(64), shares)
    torch.testing.assert_close(targets.sum(1), torch.ones(64))
    torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ values, atol=1e-4, rtol=1e-4)


def test_probes_on_separable_features() -> None:
    """All classifiers solve an easy problem, and validation never takes a whole class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    centres = 5 * torch.eye(3, 8) + 1
    features = centres[labels] + torch.randn(60, 8, generator=generator)
    report = tool.probe_features(features, labels, features, labels, 3, seed=0)
    assert min(report[key] for key in ("nearest_mean", "linear", "ridge")) > 95
    mask = tool.validation_mask(torch.tensor([0, 0, 0, 0, 0, 1, 2, 2]), 0)
    assert [int(mask[rows].sum()) for rows in (slice(0, 5), slice(5, 6), slice(6, 8))] == [1, 0, 1]
