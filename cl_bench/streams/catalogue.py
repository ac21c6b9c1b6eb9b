"""The data sets of the field: the facts about each, and where the user has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cl_bench.data.decoding import BadImage
from cl_bench.errors import UserError, unknown_name
from cl_bench.streams.config import ROOT_VARIABLE, existing_root
from cl_bench.streams.image_files import for_each_image, look_at
from cl_bench.streams.readers import (
    UnknownLayout,
    cifar_pickles,
    class_folders,
    class_trees,
    cub_lists,
    domain_folders,
    first_of,
    idx_files,
    tiny_imagenet,
)
from cl_bench.streams.split_hash import names_hash, split_hash
from cl_bench.streams.types import Archive, DataSet, Listing

FOLDER = "folder:"
OWN = "own split"

_CODA = "https://raw.githubusercontent.com/GT-RIPL/CODA-Prompt/6417d4f68754be68b697c7ca2323ee61e791e1a3"
_DOMAINNET = "http://csr.bu.edu/ftp/visda/2019/multi-source"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_DRIVE = "https://drive.google.com/file/d"

_PRE_SPLIT = """\
{0}/
  train/CLASS/*.jpg
  test/CLASS/*.jpg"""
_LISTED = """\
{0}/
  {1}/CLASS/*.jpg
  NAME_train.yaml, NAME_test.yaml (or .txt, or --split-list FILE)"""

CIFAR100 = DataSet(
    name="cifar100",
    title="CIFAR-100: 32x32 photographs of 100 kinds of things",
    licence="none stated",
    page="https://www.cs.toronto.edu/~kriz/cifar.html",
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

IMAGENET_R = DataSet(
    name="imagenet-r",
    title="ImageNet-R: art, cartoons, toys, tattoos, ... of 200 ImageNet classes",
    licence="MIT; images are their owners'",
    page="https://github.com/hendrycks/imagenet-r",
    classes=200,
    train=24_000,
    test=6_000,
    layouts={
        "train/ and test/ folders": _PRE_SPLIT.format("imagenet-r"),
        "class folders and a split list": _LISTED.format("imagenet-r", "imagenet-r"),
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

IMAGENET_A = DataSet(
    name="imagenet-a",
    title="ImageNet-A: photographs of 200 ImageNet classes that a ResNet-50 gets wrong",
    licence="MIT; images are their owners'",
    page="https://github.com/hendrycks/natural-adv-examples",
    classes=200,
    train=5_981,
    test=1_519,
    layouts={
        "train/ and test/ folders": _PRE_SPLIT.format("imagenet-a"),
        "class folders and a split list": _LISTED.format("imagenet-a", "imagenet-a"),
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
        "imagenet-a/test; or put a split list of your own beside the archive's folder."
    ),
)

CUB200 = DataSet(
    name="cub200",
    title="CUB-200-2011: photographs of 200 species of birds",
    licence="non-commercial research",
    page="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    classes=200,
    train=9_430,
    test=2_358,
    layouts={
        "train/ and test/ folders": _PRE_SPLIT.format("cub200"),
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

_DOMAINNET_FILES = (
    ("groundtruth/clipart.zip", 1_270_909_081, "f8f248a3e8bbc9868c523ae24e6601b4c2ad102afc60c0efeb4f3255df22354d"),
    ("infograph.zip", 4_338_659_804, "891e14f476317e97b6f06d6498c11d0a5b8d0c8b57210765ed9beb072da611fa"),
    ("groundtruth/painting.zip", 3_679_366_174, "fa47e6d405503ea0286cabd767f176bd30e988b63ddd7b9db16cf030c9770015"),
    ("quickdraw.zip", 459_920_701, "9f37df2a8c3733703dbb35ad9964202a65f675ca30137756457537536b485d84"),
    ("real.zip", 6_062_039_589, "d7fe010b430c5b510f85d657d38c4a1924822695fabea4fef57bd00dba251d63"),
    ("sketch.zip", 2_633_992_926, "23a7dbae7016b343e934399beaa8a68728fb5e570ebe2c71df9b75cf91c499fc"),
    ("domainnet/txt/clipart_train.txt", 1_443_819, "affdadf5f95a7583e6b98030a3d35007e2613ee4dd942393c5a705ec2b429312"),
    ("domainnet/txt/clipart_test.txt", 628_917, "62c8e36aaba1c41ad9e249099739707220a44c08f167b37ef420f34a31628a6b"),
    (
        "domainnet/txt/infograph_train.txt",
        1_683_098,
        "36b44cbd41a2915e0dc73b4f4be8862a6f3c220f93c8d63fb2439beeae3aefda",
    ),
    ("domainnet/txt/infograph_test.txt", 728_028, "413cfa54ac92e7e6b242f4f09fbd9c8ace85c4deaf3cb6c81ff6b68264460136"),
    ("domainnet/txt/painting_train.txt", 2_241_901, "f1da38d50a702fddf1329f85bc607d7a2abcae7e6aec75e1fd49cc1bd340d47b"),
    ("domainnet/txt/painting_test.txt", 971_888, "11472b13b5188e09f06918b12eebb660588c97a20e43e268d9b02e3e37eb8f97"),
    (
        "domainnet/txt/quickdraw_train.txt",
        5_164_600,
        "3a5edd3bc215772010eebc87f158707703dd7e48091d13b816af81326a9d1c0f",
    ),
    ("domainnet/txt/quickdraw_test.txt", 2_213_400, "2a00a60650a453c65c356da748fec54084a197272137c440e7d52d08947357bf"),
    ("domainnet/txt/real_train.txt", 4_440_944, "19d483256d24aef19e581b65eda8333fd918aef3eb733fe499ff384120e3a289"),
    ("domainnet/txt/real_test.txt", 1_911_327, "2b3f75bcde309aeb5931292084b2162e936b5f189e3bb1ad716f0f74c460864c"),
    ("domainnet/txt/sketch_train.txt", 1_960_222, "72f4bc6afa5702a1ccba800d0053c1427de87439dfaf246dbc9a2e71abfec54f"),
    ("domainnet/txt/sketch_test.txt", 850_581, "3fb48fca18c507c4321f007c3f62b308ec232ff6928cbfe2af64e76ec366e840"),
)
_DOMAINNET_DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
DOMAINNET = DataSet(
    name="domainnet",
    title="DomainNet: 345 kinds of things as clip art, infographics, paintings, drawings, photographs, sketches",
    licence="fair use, non-commercial research",
    page="https://ai.bu.edu/M3SDA/",
    classes=345,
    train=409_832,
    test=176_743,
    layouts={
        "domain folders with lists": (
            "domainnet/\n"
            "  DOMAIN/CLASS/*.jpg for clipart, infograph, painting, quickdraw, real, sketch\n"
            "  DOMAIN_train.txt, DOMAIN_test.txt for each (here, in txt/ or in splits/)"
        )
    },
    read=first_of(domain_folders(_DOMAINNET_DOMAINS, ("{}_train.txt", "{}_test.txt"), by_label=True)),
    tasks=5,
    folders=("domainnet", "DomainNet", "domain_net"),
    splits=((5, 69), (15, 23)),
    archives=tuple(
        Archive(f"{_DOMAINNET}/{path}", path.rpartition("/")[2], f"sha256:{digits}", size, path.endswith(".zip"))
        for path, size, digits in _DOMAINNET_FILES
    ),
    domains=_DOMAINNET_DOMAINS,
)

TINY_IMAGENET = DataSet(
    name="tiny-imagenet",
    title="Tiny ImageNet: 64x64 photographs of 200 ImageNet classes; its validation part is the test part",
    licence="non-commercial research",
    page="http://cs231n.stanford.edu/",
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
        class_folders("class folders", "val", ("tiny-imagenet-200",), through="images"),
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

_PACS_DOMAINS = ("photo", "art_painting", "cartoon", "sketch")
PACS = DataSet(
    name="pacs",
    title="PACS: 7 kinds of things as photographs, paintings, cartoons, sketches",
    licence="none stated",
    page="https://dali-dl.github.io/project_iccv2017.html",
    classes=7,
    train=8_977,
    test=1_014,
    layouts={
        "domain folders": (
            "pacs/\n"
            "  DOMAIN/CLASS/*.jpg or .png for photo, art_painting, cartoon, sketch\n"
            "  DOMAIN_train_kfold.txt, DOMAIN_crossval_kfold.txt for each (here, in splits/ or in txt/), if there are"
        )
    },
    read=first_of(
        domain_folders(
            _PACS_DOMAINS,
            ("{}_train_kfold.txt", "{}_crossval_kfold.txt"),
            ("kfold", "PACS", "PACS/kfold"),
            test_share=0.2,
        )
    ),
    tasks=0,
    folders=("pacs", "PACS"),
    manual=(
        "PACS lies on a drive that cannot be downloaded from by a program. Open "
        "https://drive.google.com/drive/folders/0B6x7gtvErXgfUU1WcGY5SzdwZVk?resourcekey=0-2fvpQY_QSyJf2uIECzqPuQ "
        "(linked from the official page), download the raw images and the split files, and put them so that there are "
        "pacs/photo, pacs/art_painting, pacs/cartoon, pacs/sketch and pacs/photo_train_kfold.txt, ... Without the "
        "split files, a fixed fifth of each class in each domain is the test part."
    ),
    domains=_PACS_DOMAINS,
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

FASHION_MNIST = DataSet(
    name="fashion-mnist",
    title="Fashion-MNIST: 28x28 grey pictures of 10 kinds of clothes",
    licence="MIT",
    page="https://github.com/zalandoresearch/fashion-mnist",
    classes=10,
    train=60_000,
    test=10_000,
    layouts={
        "idx-ubyte": (
            "fashion-mnist/ (or FashionMNIST/raw/, as torchvision has it)\n"
            "  train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz\n"
            "  t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz (all plain or .gz)"
        )
    },
    read=first_of(
        idx_files(
            (
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            )
        ),
        lists=False,
    ),
    tasks=5,
    folders=("fashion-mnist", "fashion_mnist", "FashionMNIST"),
    splits=((5, 2),),
    balanced=True,
    archives=tuple(
        Archive(f"{_FASHION}/{name}-ubyte.gz", f"{name}-ubyte.gz", f"md5:{digits}", unpack=False)
        for name, digits in (
            ("train-images-idx3", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            ("train-labels-idx1", "25c81989df183df01b3e8a0aad5dffbe"),
            ("t10k-images-idx3", "bef4ecab320f06d8554ea6380940ec79"),
            ("t10k-labels-idx1", "bb300cfdad3c16e7a12a480ee83cd310"),
        )
    ),
)

_ANY_FOLDER = DataSet(
    name=f"{FOLDER}PATH",
    title="any tree of class folders",
    licence="your own",
    page="",
    classes=0,
    train=0,
    test=0,
    layouts={
        "train/ and test/ folders": "PATH/\n  train/CLASS/* (any depth)\n  test/CLASS/* (or val/CLASS/*)",
        "class folders and a split list": (
            "PATH/\n  CLASS/* (any depth)\n  NAME_train.txt, NAME_test.txt (or .yaml, or --split-list FILE)"
        ),
    },
    read=first_of(class_trees(tests=("test", "val"))),
    tasks=0,
    folders=(),
)

_DATA_SETS = {
    dataset.name: dataset
    for dataset in (CIFAR100, IMAGENET_R, IMAGENET_A, CUB200, DOMAINNET, TINY_IMAGENET, PACS, FASHION_MNIST)
}


def names() -> list[str]:
    """Names of the data sets, without `folder:PATH`."""
    return sorted(_DATA_SETS)


def find(name: str) -> DataSet:
    """The data set with this name, or `folder:PATH`.

    Sizes of a folder's data set are 0, which stands for unknown.

    Raises:
        UserError: there is none; the closest name is suggested.
    """
    if name.startswith(FOLDER):
        path = name.removeprefix(FOLDER)
        if not path:
            raise UserError(f"'{name}' names no folder; write {FOLDER}PATH")
        return replace(_ANY_FOLDER, name=name, folders=(str(Path(path).expanduser().absolute()),))
    if name not in _DATA_SETS:
        raise unknown_name("data set", name, [*_DATA_SETS, f"{FOLDER}PATH"], "'cl-bench data list' describes them.")
    return _DATA_SETS[name]


def locate(dataset: DataSet, root: Path | None = None) -> Path:
    """The folder of a data set: the first of its names that is there.

    Raises:
        UserError: it is not there.
    """
    if dataset.name.startswith(FOLDER):
        (folder,) = map(Path, dataset.folders)
        if not folder.is_dir():
            raise UserError(f"there is no folder '{folder}' ({dataset.name}); name an existing one")
        return folder
    top = existing_root(root)
    for name in dataset.folders:
        if (top / name).is_dir():
            return top / name
    parent = f" (for the folder '{top}' itself, name its parent)" if top.name in dataset.folders else ""
    raise UserError(
        f"{dataset.name} is not there: no folder '{top / dataset.folders[0]}'; 'cl-bench data prepare {dataset.name}' "
        f"gets it or says how, and --root or {ROOT_VARIABLE} names another data folder{parent}"
    )


def read(dataset: DataSet, folder: Path, split_list: Path | None = None) -> Listing:
    """What is in a folder, whether it is complete or not.

    Raises:
        UserError: it has no known layout, or there is something wrong with it.
    """
    try:
        return dataset.read(folder, split_list)
    except UnknownLayout as error:
        trees = "\nor\n".join(dataset.layouts.values())
        raise UserError(f"'{folder}' has no layout of {dataset.name} that is known; arrange it as\n{trees}") from error


def class_faults(dataset: DataSet, listing: Listing) -> list[str]:
    """What is wrong with the classes, as sentences: their number, or one without images."""
    faults = []
    present = [{entry.label for entry in part} for part in (listing.train, listing.test)]
    if dataset.classes and len(listing.classes) != dataset.classes:
        odd = sorted(present[0] ^ present[1])
        hint = f"; in one part only: {_few(odd)}" if odd else ""
        faults.append(f"{len(listing.classes)} classes, expected {dataset.classes}{hint}")
    for part, labels in zip(("training", "test"), present, strict=True):
        if empty := [name for name in listing.classes if name not in labels]:
            faults.append(f"no {part} images of class {_few(empty)}")
    return faults


def load(dataset: DataSet, root: Path | None = None, skip_bad: bool = False, split_list: Path | None = None) -> Listing:
    """The images of a data set, checked for what can be seen without decoding them.

    Args:
        root: folder with the data sets, see `config.data_root`.
        skip_bad: leave out images that cannot be decoded, for which all of them are.
        split_list: see `readers.splits.read_split`.

    Raises:
        UserError: the data set is not there or has another layout, a wrong number of classes, a class without images,
            or (without `skip_bad`) an image that is missing or empty. Images that are damaged inside are for
            `data.decoding.decode` to find.
    """
    folder = locate(dataset, root)
    listing = read(dataset, folder, split_list)
    if listing.pixels is None:
        files = listing.train + listing.test
        if skip_bad:
            seen = for_each_image(files, lambda entry, pixels: None)
            bad = [found for found in seen if isinstance(found, BadImage)]
            listing = without(listing, {found.path for found in bad})
        elif bad := [found for entry in files if entry.path and (found := look_at(entry.path))]:
            more = f" (and {len(bad) - 1} more: 'cl-bench data verify {dataset.name}' names them)" if bad[1:] else ""
            raise UserError(f"{dataset.name}: {bad[0]}{more}")
    if faults := class_faults(dataset, listing):
        raise UserError(
            f"{dataset.name} in '{folder}' ({listing.layout}): {'; '.join(faults)}; get it again or restore it"
        )
    return listing


def without(listing: Listing, bad: set[Path]) -> Listing:
    """A listing of files without some of them."""
    train, test = (tuple(entry for entry in part if entry.path not in bad) for part in (listing.train, listing.test))
    return replace(listing, train=train, test=test)


def split_of(dataset: DataSet, listing: Listing) -> tuple[str, bool]:
    """The name of the split, and whether it is a published one; any other is called by its hash."""
    names = [[entry.name for entry in part] for part in (listing.train, listing.test)]
    found = tuple(map(names_hash, names))
    for name, known in dataset.split_hashes.items():
        if found == known:
            return name, True
    return f"{OWN} {split_hash(*names)[:8]}", False


def _few(names: list[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(f"'{name}'" for name in names[:shown]) + more
