"""Tests of tools/pretrain_backbone.py with a very small model on synthetic images."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

TOOLS = Path(__file__).parents[1] / "tools"
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


def load_tool() -> ModuleType:
    """Import the script, which is not part of the package."""
    spec = importlib.util.spec_from_file_location("pretrain_backbone", TOOLS / "pretrain_backbone.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tool = load_tool()


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
        | {"erase_area": [0.05, 0.2], "saturation": [0.5, 1.5], "brightness": 0.1},
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


def test_no_augmentation_is_identity() -> None:
    """With all strengths at their defaults, images are only scaled to 0..1."""
    pixels = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)
    augment = tool.Augmenter(tool.AugmentRecipe(), torch.device("cpu"), torch.Generator())
    torch.testing.assert_close(augment(pixels), pixels / 255, atol=1e-4, rtol=0)


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
