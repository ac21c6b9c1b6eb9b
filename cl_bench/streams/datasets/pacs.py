"""PACS (Li et al., 2017)."""

from cl_bench.streams.readers import domain_folders, first_of
from cl_bench.streams.types import DataSet

_DOMAINS = ("photo", "art_painting", "cartoon", "sketch")
DATASET = DataSet(
    name="pacs",
    title="PACS: 7 kinds of things as photographs, paintings, cartoons, sketches",
    licence="none stated",
    page="https://dali-dl.github.io/project_iccv2017.html",
    citations=("li2017pacs",),
    classes=7,
    train=8_977,
    test=1_014,
    layouts={
        "domain folders": (
            "pacs/\n"
            "  DOMAIN/CLASS/*.jpg or .png for photo, art_painting, cartoon, sketch\n"
            "  DOMAIN_train_kfold.txt, DOMAIN_crossval_kfold.txt for each (here, in splits/ or in txt/), optional"
        )
    },
    read=first_of(
        domain_folders(
            _DOMAINS,
            ("{}_train_kfold.txt", "{}_crossval_kfold.txt"),
            ("kfold", "PACS", "PACS/kfold"),
            test_share=0.2,
        )
    ),
    tasks=0,
    folders=("pacs", "PACS"),
    manual=(
        "PACS is on a drive from which programs cannot download. Open "
        "https://drive.google.com/drive/folders/0B6x7gtvErXgfUU1WcGY5SzdwZVk?resourcekey=0-2fvpQY_QSyJf2uIECzqPuQ "
        "(linked from the official page), download the raw images and the split files, and put them so that there are "
        "pacs/photo, pacs/art_painting, pacs/cartoon, pacs/sketch and pacs/photo_train_kfold.txt, ... Without the "
        "split files, a fixed fifth of each class in each domain is used for testing."
    ),
    domains=_DOMAINS,
    scenario="domain-incremental",
    split_hashes={
        "official (train and crossval)": (
            "f37e05f7596a53edc295747432e75813d552e27a380bb2990eeb3f943d07388c",
            "fc59194e243006dac92e6a9c1d427c7f9a578a79f6614cf6888d9182dcf5e52a",
        ),
        "by name (7,993/1,998)": (
            "c534741bbc0cf748b3861b5a62c003c4f3dba86177085497760c7bdd7914c4e8",
            "db2ce5dd337337adb9b1941e17460f0a10c6804d82cd61438a66ec32ac2e8fb3",
        ),
    },
    checked="files",
)
