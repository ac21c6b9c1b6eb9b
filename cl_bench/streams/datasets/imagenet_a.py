"""ImageNet-A (Hendrycks et al., 2021)."""

from cl_bench.streams.readers import class_trees, first_of
from cl_bench.streams.readers.layouts import LISTED_FOLDERS, SPLIT_FOLDERS
from cl_bench.streams.types import Archive, DataSet

_DRIVE = "https://drive.google.com/file/d"

DATASET = DataSet(
    name="imagenet-a",
    title="ImageNet-A: photographs of 200 ImageNet classes that a ResNet-50 gets wrong",
    licence="MIT; images are their owners'",
    page="https://github.com/hendrycks/natural-adv-examples",
    citations=("hendrycks2021imageneta",),
    classes=200,
    train=5_981,
    test=1_519,
    layouts={
        "train/ and test/ folders": SPLIT_FOLDERS.format("imagenet-a"),
        "class folders and a split list": LISTED_FOLDERS.format("imagenet-a", "imagenet-a"),
    },
    read=first_of(class_trees(("imagenet-a",))),
    tasks=10,
    folders=("imagenet-a", "imagenet_a", "ImageNet-A"),
    splits=((10, 20), (20, 10)),
    archives=(
        Archive(
            "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
            "imagenet-a.tar",
            "md5:c3e55429088dc681f30d81f4726b6595",
            687_552_512,
        ),
    ),
    manual=(
        "The archive has no split, and no list of one is published. For the 5,981/1,519 images of PILOT and SD-LoRA "
        f"download {_DRIVE}/19l52ua_vvTtttgVRziCZJjal0TPE9f2p and unpack it so that there are imagenet-a/train and "
        "imagenet-a/test; or put your own split list next to the archive's folder."
    ),
)
