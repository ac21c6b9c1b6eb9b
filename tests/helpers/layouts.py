"""All layouts of the field's data sets by name, and helpers to inspect listings and verifications."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cl_bench.streams.types import DataSet, Listing
from cl_bench.streams.verify import Verification
from tests.helpers import trees

LAYOUTS: dict[str, tuple[Callable[[Path], Path], DataSet]] = {
    "cifar pickles": (trees.cifar_pickles, trees.CIFAR100),
    "cifar png": (trees.cifar_png, trees.CIFAR100),
    "imagenet-r pre-split": (trees.pre_split, trees.IMAGENET_R),
    "imagenet-r archive": (trees.original, trees.IMAGENET_R),
    "imagenet-a pre-split": (partial(trees.pre_split, name="imagenet-a"), trees.IMAGENET_A),
    "imagenet-a archive": (partial(trees.original, name="imagenet-a"), trees.IMAGENET_A),
    "cub pre-split": (partial(trees.pre_split, name="cub", classes=trees.BIRDS), trees.CUB200),
    "cub archive": (trees.cub, trees.CUB200),
    "domainnet": (trees.domainnet, trees.DOMAINNET_SET),
    "domainnet txt": (partial(trees.domainnet, lists="txt"), trees.DOMAINNET_SET),
    "pacs": (trees.pacs, trees.PACS_SET),
    "pacs without lists": (partial(trees.pacs, lists=False), trees.PACS_SET),
    "tiny original": (trees.tiny_original, trees.TINY_IMAGENET),
    "tiny folders": (trees.tiny_folders, trees.TINY_IMAGENET),
    "tiny folders images": (partial(trees.tiny_folders, inner="images"), trees.TINY_IMAGENET),
    "fashion": (trees.fashion, trees.FASHION_MNIST),
    "fashion torchvision": (partial(trees.fashion, inner="FashionMNIST/raw", packed=False), trees.FASHION_MNIST),
}


def made(layout: str, root: Path) -> tuple[DataSet, Path]:
    builder, dataset = LAYOUTS[layout]
    return dataset, builder(root)


def names_of(listing: Listing) -> tuple[list[str], list[str]]:
    return [entry.name for entry in listing.train], [entry.name for entry in listing.test]


def kinds(verification: Verification) -> Counter[str]:
    return Counter(finding.kind for finding in verification.findings)
