"""ImageNet-R (Hendrycks et al., 2021)."""

from cl_bench.streams.readers import class_trees, first_of
from cl_bench.streams.readers.layouts import LISTED_FOLDERS, SPLIT_FOLDERS
from cl_bench.streams.types import Archive, DataSet

_CODA = "https://raw.githubusercontent.com/GT-RIPL/CODA-Prompt/6417d4f68754be68b697c7ca2323ee61e791e1a3"
_DRIVE = "https://drive.google.com/file/d"

DATASET = DataSet(
    name="imagenet-r",
    title="ImageNet-R: art, cartoons, toys, tattoos, ... of 200 ImageNet classes",
    licence="MIT; images are their owners'",
    page="https://github.com/hendrycks/imagenet-r",
    citations=("hendrycks2021imagenetr",),
    classes=200,
    train=24_000,
    test=6_000,
    layouts={
        "train/ and test/ folders": SPLIT_FOLDERS.format("imagenet-r"),
        "class folders and a split list": LISTED_FOLDERS.format("imagenet-r", "imagenet-r"),
    },
    read=first_of(class_trees(("imagenet-r",))),
    tasks=10,
    folders=("imagenet-r", "imagenet_r", "ImageNet-R"),
    splits=((5, 40), (10, 20), (20, 10)),
    archives=(
        Archive(
            "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
            "imagenet-r.tar",
            "md5:a61312130a589d0ca1a8fca1f2bd3337",
            2_191_079_936,
        ),
        Archive(
            f"{_CODA}/dataloaders/splits/imagenet-r_train.yaml",
            "imagenet-r_train.yaml",
            "sha256:6bcaa14ca9359915ac3a44c48ae71388146385686eb15da79a37844421a0b845",
            1_137_662,
            unpack=False,
        ),
        Archive(
            f"{_CODA}/dataloaders/splits/imagenet-r_test.yaml",
            "imagenet-r_test.yaml",
            "sha256:57275ac242d68983a4f39ccb81ec34f48b1bd920b9cd79e6e8040d7c042db02a",
            284_216,
            unpack=False,
        ),
    ),
    manual=(
        "The download has the split of CODA-Prompt, InfLoRA and Mammoth. PILOT and SD-LoRA use another one of the same "
        f"size, as train/ and test/ folders: download {_DRIVE}/1SG4TbiL8_DooekztyCVK8mPmfhMo8fkR and unpack it so that "
        "there are imagenet-r/train and imagenet-r/test."
    ),
    split_hashes={
        "CODA-Prompt": (
            "6b6014a06e97012adb968b55172d2f672d93ed2e36ce82b45e038ef23886321d",
            "9e7f6243e605e2223739b158f26e442480eb940f9e24508bf6c02c939efdcc26",
        )
    },
)
