"""Tiny ImageNet (Stanford's CS231n)."""

from cl_bench.streams.readers import TINY_FILES, class_folders, first_of, tiny_imagenet
from cl_bench.streams.types import Archive, DataSet

DATASET = DataSet(
    name="tiny-imagenet",
    title="Tiny ImageNet: 64x64 photographs of 200 ImageNet classes; tested on its validation part",
    licence="non-commercial research",
    page="http://cs231n.stanford.edu/",
    citations=("le2015tinyimagenet", "russakovsky2015imagenet"),
    classes=200,
    train=100_000,
    test=10_000,
    layouts={
        "original tree": (
            "tiny-imagenet/\n"
            "  tiny-imagenet-200/train/CLASS/images/*.JPEG\n"
            "  tiny-imagenet-200/val/images/*.JPEG, val_annotations.txt"
        ),
        "class folders": "tiny-imagenet/\n  train/CLASS/*.JPEG (or train/CLASS/images/)\n  val/CLASS/*.JPEG",
    },
    read=first_of(
        tiny_imagenet(("tiny-imagenet-200",)),
        class_folders("class folders", "val", ("tiny-imagenet-200",), through="images", known=TINY_FILES),
        lists=False,
    ),
    tasks=10,
    folders=("tiny-imagenet", "tiny-imagenet-200", "tiny_imagenet", "TinyImageNet"),
    splits=((5, 40), (10, 20), (20, 10)),
    balanced=True,
    archives=(
        Archive(
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            "tiny-imagenet-200.zip",
            "md5:90528d7ca1a48142e341f4ef8d21d0de",
            248_100_043,
        ),
    ),
    split_hashes={
        "official": (
            "308250bdcca4970c9f4ad74ecc91fb81d71c5ec3e359a6622aad7456574d8180",
            "5bbf350d9ebcdbca0d59ed31a78c1e86990d39bc0ac50191d32f935b41bd7c19",
        )
    },
    checked="files",
)
