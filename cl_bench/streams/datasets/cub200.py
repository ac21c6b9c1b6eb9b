"""CUB-200-2011 (Wah et al., 2011)."""

from cl_bench.streams.readers import class_trees, cub_lists, first_of
from cl_bench.streams.readers.layouts import SPLIT_FOLDERS
from cl_bench.streams.types import Archive, DataSet

_DRIVE = "https://drive.google.com/file/d"

DATASET = DataSet(
    name="cub200",
    title="CUB-200-2011: photographs of 200 species of birds",
    licence="non-commercial research",
    page="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    citations=("wah2011cub",),
    classes=200,
    train=9_430,
    test=2_358,
    layouts={
        "train/ and test/ folders": SPLIT_FOLDERS.format("cub200"),
        "original archive": (
            "cub200/\n"
            "  CUB_200_2011/images/CLASS/*.jpg\n"
            "  CUB_200_2011/images.txt, train_test_split.txt (the official split)\n"
            "  NAME_train.yaml, NAME_test.yaml (or .txt, or --split-list FILE), for another split"
        ),
    },
    read=first_of(class_trees(("CUB_200_2011/images", "images", "cub"), own=cub_lists)),
    tasks=10,
    folders=("cub200", "cub", "CUB", "CUB200", "cub-200", "CUB_200_2011"),
    splits=((10, 20), (20, 10), (5, 40)),
    archives=(
        Archive(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "CUB_200_2011.tgz",
            "md5:97eceeb196236b17998738112f37df78",
            1_150_585_339,
        ),
    ),
    manual=(
        "The download has the official split of 5,994/5,794 images. PILOT and SD-LoRA use 9,430/2,358, as train/ and "
        f"test/ folders: download {_DRIVE}/1XbUpnWpJPnItt5zQ6sHJnsjPncnNLvWb and unpack it so that there are "
        "cub200/train and cub200/test."
    ),
    split_hashes={
        "official (5,994/5,794)": (
            "408872b4b0e1171d4494747d3c2f4d69cebac9e717caf70151d48a28b14e62f1",
            "0c4e769f00133fa16432b0ecb6ceb10a682ec0d2325c09187911422ee723b988",
        )
    },
)
