"""Fashion-MNIST (Xiao et al., 2017)."""

from cl_bench.streams.readers import first_of, idx_files
from cl_bench.streams.types import Archive, DataSet

_SOURCE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"

DATASET = DataSet(
    name="fashion-mnist",
    title="Fashion-MNIST: 28x28 grey pictures of 10 kinds of clothes",
    licence="MIT",
    page="https://github.com/zalandoresearch/fashion-mnist",
    citations=("xiao2017fashion",),
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
        Archive(f"{_SOURCE}/{name}-ubyte.gz", f"{name}-ubyte.gz", f"md5:{digits}", unpack=False)
        for name, digits in (
            ("train-images-idx3", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            ("train-labels-idx1", "25c81989df183df01b3e8a0aad5dffbe"),
            ("t10k-images-idx3", "bef4ecab320f06d8554ea6380940ec79"),
            ("t10k-labels-idx1", "bb300cfdad3c16e7a12a480ee83cd310"),
        )
    ),
)
