"""CIFAR-100 (Krizhevsky, 2009)."""

from cl_bench.streams.readers import cifar_pickles, class_folders, first_of
from cl_bench.streams.types import Archive, DataSet

DATASET = DataSet(
    name="cifar100",
    title="CIFAR-100: 32x32 photographs of 100 kinds of things",
    licence="none stated",
    page="https://www.cs.toronto.edu/~kriz/cifar.html",
    citations=("krizhevsky2009cifar",),
    classes=100,
    train=50_000,
    test=10_000,
    layouts={
        "cifar-100-python": "cifar100/\n  cifar-100-python/train, test, meta (the archive, as torchvision unpacks it)",
        "class folders": "cifar100/\n  train/CLASS/*.png\n  test/CLASS/*.png",
    },
    read=first_of(cifar_pickles, class_folders("class folders"), lists=False),
    tasks=10,
    folders=("cifar100", "cifar-100", "CIFAR100", "CIFAR-100", "CIFAR-100-dataset", "cifar-100-python"),
    splits=((5, 20), (10, 10), (20, 5), (50, 2)),
    balanced=True,
    archives=(
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "cifar-100-python.tar.gz",
            "md5:eb9058c3a382ffc7106e4002c42a8d85",
        ),
    ),
    split_hashes={
        "official": (
            "d4a955ee8a74cd875faa6c12637073f4e26f9bba6beb76a8b0844d2fdf2dc8e3",
            "16b100d772380ea7653be45ca1c161761623614ed8f058f48b1a9e7645d4f7a3",
        )
    },
    content_hash="d4bf808946009d72b5934afae71cd0566b0c4a5fcec66363bb9bb938d1720711",
    checked="files",
)
