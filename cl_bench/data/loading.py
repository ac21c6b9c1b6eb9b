"""From an image store to batches on a device: resident there if there is room, otherwise sent a batch at a time."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cl_bench.data.decoding import decode
from cl_bench.data.images import ImageFiles, ImageStore, RaggedImages
from cl_bench.data.packed import Images, Packed

T = TypeVar("T")
R = TypeVar("R")

SHARE = 0.5
"""How much of the device's free memory the images of a store may take."""
_SIDES = 256
"""Sides of decoded images are rounded up to multiples of this."""
_AHEAD = 2
"""Batches that are made ready while the device works."""
_TAIL = 1024
"""Bytes at the end of a file in which a JPEG image must end: some programs fill files up with zeros."""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device, without waiting for the copy."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def gather(store: ImageStore, ids: NDArray[np.int64]) -> Images:
    """The images with these indices, in the memory of the host."""
    (batch,) = batches(store, ids, len(ids), torch.device("cpu"))
    return batch


def batches(store: ImageStore, ids: NDArray[np.int64], batch_size: int, device: torch.device) -> Iterator[Images]:
    """The images `ids` of a store, so many at a time, on a device; see `ImageStore`."""
    images = store.images
    chunks = [ids[start : start + batch_size] for start in range(0, len(ids), batch_size)]
    if isinstance(images, np.ndarray | RaggedImages) and (pixels := _on_device(store, images, device)) is not None:
        yield from _resident(images, pixels, ids, batch_size)
    elif isinstance(images, RaggedImages):
        yield from _sent(images, ids, chunks, device)
    elif isinstance(images, ImageFiles) and _decodes_jpeg(device):
        for read in _prefetched(lambda chunk: _read(images, chunk), chunks, device):
            yield _decoded(read, device)
    else:
        # Also of an array that somebody watches (see `audit.observation.Counted`): nothing is read past it.
        for found in _prefetched(lambda chunk: images[chunk], chunks, device):
            if isinstance(found, list):
                yield [to_device(torch.from_numpy(image), device).permute(2, 0, 1) for image in found]
            else:
                yield to_device(torch.from_numpy(found), device).permute(0, 3, 1, 2)


# --- stored images ---------------------------------------------------------------------------------------------

_resident_pixels: WeakKeyDictionary[ImageStore, dict[torch.device, Tensor | None]] = WeakKeyDictionary()


def _on_device(store: ImageStore, images: NDArray[np.uint8] | RaggedImages, device: torch.device) -> Tensor | None:
    """The pixels of all images of a store on the device, sent there once; None if they do not fit."""
    pixels = images.flat if isinstance(images, RaggedImages) else images
    if device.type != "cuda":
        return torch.from_numpy(pixels)
    resident = _resident_pixels.setdefault(store, {})
    # `cuda` and `cuda:0` may be one device.
    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    if device not in resident:
        free, _ = torch.cuda.mem_get_info(device)
        # Kept for training as well, whoever asks first.
        with torch.inference_mode(False):
            resident[device] = torch.from_numpy(pixels).to(device) if pixels.nbytes <= SHARE * free else None
    return resident[device]


def _resident(
    images: NDArray[np.uint8] | RaggedImages, pixels: Tensor, ids: NDArray[np.int64], batch_size: int
) -> Iterator[Images]:
    """Batches out of the pixels of all images: only indices travel, once."""
    if isinstance(images, RaggedImages):
        for offsets, heights, widths in _places(images, images.offsets[ids], ids, batch_size, pixels.device):
            yield Packed(pixels, offsets, heights, widths, *images.sides)
    else:
        for rows in to_device(torch.from_numpy(ids), pixels.device).split(batch_size):
            yield pixels[rows].permute(0, 3, 1, 2)


def _sent(
    images: RaggedImages, ids: NDArray[np.int64], chunks: list[NDArray[np.int64]], device: torch.device
) -> Iterator[Packed]:
    """Batches of images that do not fit on the device: as many bytes of each as the largest one has."""
    flat, begins = torch.from_numpy(images.flat), torch.from_numpy(images.offsets)
    windows = flat.as_strided((len(flat) - images.window + 1, images.window), (1, 1))

    def filled(chunk: NDArray[np.int64]) -> Tensor:
        # Straight into memory that the device reads: anything in between takes twice as long.
        out = torch.empty((len(chunk), images.window), dtype=torch.uint8, pin_memory=device.type == "cuda")
        return torch.index_select(windows, 0, begins[torch.from_numpy(chunk)], out=out)

    size = len(chunks[0]) if chunks else 1
    starts = images.window * (np.arange(len(ids)) % size)
    places = _places(images, starts, ids, size, device)
    for batch, (offsets, heights, widths) in zip(_prefetched(filled, chunks, device), places, strict=True):
        yield Packed(to_device(batch, device).flatten(), offsets, heights, widths, *images.sides)


def _places(
    images: RaggedImages, offsets: NDArray[np.int64], ids: NDArray[np.int64], batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """Offset, height and width of the images `ids`, in batches."""
    table = np.concatenate([offsets[None], images.sizes[ids].T]).astype(np.int64)
    for batch in to_device(torch.from_numpy(table), device).split(batch_size, dim=1):
        yield batch.unbind(0)


def _prefetched(work: Callable[[T], R], items: Iterable[T], device: torch.device) -> Iterator[R]:
    """`map` in a thread, some items ahead of who takes them; on the CPU, whose cores are taken, when they are."""
    if device.type != "cuda":
        yield from map(work, items)
        return
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


# --- files that are decoded on the device ----------------------------------------------------------------------


def _read(images: ImageFiles, ids: NDArray[np.int64]) -> list[tuple[Path, Tensor]]:
    """Each file with its bytes [n], if the device can decode them, otherwise with its pixels [H, W, 3]."""
    # One after the other: reading is mostly Python, and takes two to five times as long in threads.
    contents = [_jpeg(images, i) for i in ids.tolist()]
    paths = [images.paths[i] for i in ids.tolist()]
    others = [path for path, content in zip(paths, contents, strict=True) if content is None]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pixels = pool.map(decode, others)
        return [
            (path, torch.from_numpy(next(pixels) if content is None else content))
            for path, content in zip(paths, contents, strict=True)
        ]


def _jpeg(images: ImageFiles, i: int) -> NDArray[np.uint8] | None:
    """The bytes of a whole JPEG file that a GPU can decode; None of any other file."""
    if images.jpeg[i] < 0:
        return None
    try:
        content = bytearray(images.paths[i].read_bytes())
        if not images.jpeg[i]:
            images.jpeg[i] = 1 if _plain(content) else -1
    except Exception:
        # Pillow raises what its decoders raise; `decode` says what is wrong.
        return None
    # The GPU's decoder takes half a file without a word.
    whole = content[-_TAIL:].rstrip(b"\0").endswith(b"\xff\xd9")
    return np.frombuffer(content, np.uint8) if images.jpeg[i] > 0 and whole else None


def _plain(content: bytearray) -> bool:
    """Whether it is a JPEG file of 8 bits in grey or in the usual three channels."""
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        return image.format == "JPEG" and image.mode in ("L", "RGB") and image.info.get("adobe_transform", 1) == 1


def _decoded(found: list[tuple[Path, Tensor]], device: torch.device) -> Packed:
    """RGB pixels on the device, of what `_read` has found."""
    from torchvision.io import ImageReadMode, decode_jpeg

    images: list[Tensor | None] = [
        to_device(content, device).permute(2, 0, 1) if content.ndim == 3 else None for _, content in found
    ]
    coded = [i for i, image in enumerate(images) if image is None]
    if coded:
        try:
            pixels = decode_jpeg([found[i][1] for i in coded], mode=ImageReadMode.RGB, device=device)
        except RuntimeError:
            # Pillow says which of them is damaged, if it is that.
            pixels = [to_device(torch.from_numpy(decode(found[i][0])), device).permute(2, 0, 1) for i in coded]
        for i, image in zip(coded, pixels, strict=True):
            images[i] = image
    return _packed([image for image in images if image is not None], device)


def _packed(images: list[Tensor], device: torch.device) -> Packed:
    """Images [3, H, W] of the device, packed. Sizes that a graph is compiled for are rounded up: there are few then."""
    lying = [image.transpose(1, 2) if image.shape[1] > image.shape[2] else image for image in images]
    short, long = (_SIDES * -(-max(image.shape[axis] for image in lying) // _SIDES) for axis in (1, 2))
    offsets = np.cumsum([0, *(image.numel() for image in lying)])
    flat = torch.empty(1 << int(offsets[-1] + long).bit_length(), dtype=torch.uint8, device=device)
    for image, offset in zip(lying, offsets.tolist(), strict=False):
        flat[offset : offset + image.numel()].view(image.shape).copy_(image)
    table = np.array([offsets[:-1], *([image.shape[axis] for image in images] for axis in (1, 2))], dtype=np.int64)
    starts, heights, widths = to_device(torch.from_numpy(table), device).unbind(0)
    return Packed(flat, starts, heights, widths, short, long)


@cache
def _decodes_jpeg(device: torch.device) -> bool:
    """Whether the device decodes JPEG files: a GPU does, if torchvision was built with nvJPEG."""
    if device.type != "cuda":
        return False
    from torchvision.io import decode_jpeg

    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    try:
        decode_jpeg(torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8), device=device)
    except RuntimeError:
        return False
    return True
