"""Batches of an image store on a device: from pixels resident there if they fit, otherwise sent batch by batch."""

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
"""Largest share of the device's free memory that the images of a store may use."""
_SIDES = 256
"""Side lengths of packed images are rounded up to multiples of this, in pixels."""
_AHEAD = 2
"""Number of batches prepared while the device works."""
_TAIL = 1024
"""Last bytes of a file that must contain the end of a JPEG image; some programs pad files with zeros."""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the host to a device, without waiting for the copy to finish."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def gather(store: ImageStore, ids: NDArray[np.int64]) -> Images:
    """The images with the indices `ids`, in host memory."""
    (batch,) = batches(store, ids, len(ids), torch.device("cpu"))
    return batch


def batches(store: ImageStore, ids: NDArray[np.int64], batch_size: int, device: torch.device) -> Iterator[Images]:
    """The images with the indices `ids`, on a device, in batches of `batch_size` (the last may be smaller)."""
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
        # Also for arrays that count accesses (see `audit.observation.Counted`): every read goes through them.
        for found in _prefetched(lambda chunk: images[chunk], chunks, device):
            if isinstance(found, list):
                yield [to_device(torch.from_numpy(image), device).permute(2, 0, 1) for image in found]
            else:
                yield to_device(torch.from_numpy(found), device).permute(0, 3, 1, 2)


# --- stored images ---------------------------------------------------------------------------------------------

_resident_pixels: WeakKeyDictionary[ImageStore, dict[torch.device, Tensor | None]] = WeakKeyDictionary()


def _on_device(store: ImageStore, images: NDArray[np.uint8] | RaggedImages, device: torch.device) -> Tensor | None:
    """The pixels of all images of a store on the device, copied there once; None if they do not fit."""
    pixels = images.flat if isinstance(images, RaggedImages) else images
    if device.type != "cuda":
        return torch.from_numpy(pixels)
    resident = _resident_pixels.setdefault(store, {})
    # `cuda` and `cuda:0` may be the same device.
    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    if device not in resident:
        free, _ = torch.cuda.mem_get_info(device)
        # Also used in training, so never an inference tensor, even if the first use is an evaluation.
        with torch.inference_mode(False):
            resident[device] = torch.from_numpy(pixels).to(device) if pixels.nbytes <= SHARE * free else None
    return resident[device]


def _resident(
    images: NDArray[np.uint8] | RaggedImages, pixels: Tensor, ids: NDArray[np.int64], batch_size: int
) -> Iterator[Images]:
    """Batches from resident pixels: only the indices are copied to the device, once."""
    if isinstance(images, RaggedImages):
        for offsets, heights, widths in _places(images, images.offsets[ids], ids, batch_size, pixels.device):
            yield Packed(pixels, offsets, heights, widths, *images.sides)
    else:
        for rows in to_device(torch.from_numpy(ids), pixels.device).split(batch_size):
            yield pixels[rows].permute(0, 3, 1, 2)


def _sent(
    images: RaggedImages, ids: NDArray[np.int64], chunks: list[NDArray[np.int64]], device: torch.device
) -> Iterator[Packed]:
    """Batches of images that do not fit on the device; each image is sent with as many bytes as the largest has."""
    flat, begins = torch.from_numpy(images.flat), torch.from_numpy(images.offsets)
    windows = flat.as_strided((len(flat) - images.window + 1, images.window), (1, 1))

    def filled(chunk: NDArray[np.int64]) -> Tensor:
        # Directly into pinned memory: an intermediate copy doubles the time.
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
    """Offsets, heights and widths of the images `ids`, on the device, in batches."""
    table = np.concatenate([offsets[None], images.sizes[ids].T]).astype(np.int64)
    for batch in to_device(torch.from_numpy(table), device).split(batch_size, dim=1):
        yield batch.unbind(0)


def _prefetched(work: Callable[[T], R], items: Iterable[T], device: torch.device) -> Iterator[R]:
    """`map` in a thread, a few items ahead of the consumer; a plain `map` on the CPU, whose cores are busy."""
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
    """Each file with its bytes [n] if the device can decode them, otherwise with its pixels [H, W, 3]."""
    # Sequentially: reading is mostly Python code, and takes two to five times as long in threads.
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
        # Pillow's decoders raise errors of any type; `decode` describes the fault.
        return None
    # The GPU's decoder silently accepts a truncated file.
    whole = content[-_TAIL:].rstrip(b"\0").endswith(b"\xff\xd9")
    return np.frombuffer(content, np.uint8) if images.jpeg[i] > 0 and whole else None


def _plain(content: bytearray) -> bool:
    """Whether the content is a JPEG file of 8 bits, in grey or in the usual three channels."""
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        return image.format == "JPEG" and image.mode in ("L", "RGB") and image.info.get("adobe_transform", 1) == 1


def _decoded(found: list[tuple[Path, Tensor]], device: torch.device) -> Packed:
    """RGB pixels on the device, decoded from the result of `_read`."""
    from torchvision.io import ImageReadMode, decode_jpeg

    images: list[Tensor | None] = [
        to_device(content, device).permute(2, 0, 1) if content.ndim == 3 else None for _, content in found
    ]
    coded = [i for i, image in enumerate(images) if image is None]
    if coded:
        try:
            pixels = decode_jpeg([found[i][1] for i in coded], mode=ImageReadMode.RGB, device=device)
        except RuntimeError:
            # Decode with Pillow instead, which names the damaged file if that is the cause.
            pixels = [to_device(torch.from_numpy(decode(found[i][0])), device).permute(2, 0, 1) for i in coded]
        for i, image in zip(coded, pixels, strict=True):
            images[i] = image
    return _packed([image for image in images if image is not None], device)


def _packed(images: list[Tensor], device: torch.device) -> Packed:
    """Pack images [3, H, W] on the device. Sizes are rounded up, so that graphs are compiled for few of them."""
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
    """Whether the device decodes JPEG files: true for a GPU if torchvision was built with nvJPEG."""
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
