"""The results store: one JSON and one npz file per run, validated on every read."""

from cl_bench.store.folders import DEFAULT_FOLDERS, REFERENCE, default_folders, folders_to_read, own_folders
from cl_bench.store.predictions import Arrays
from cl_bench.store.record import RunRecord
from cl_bench.store.store import CHECKPOINTS, DamagedRecord, Store, UnreadableRecord, matching

__all__ = [
    "CHECKPOINTS",
    "DEFAULT_FOLDERS",
    "REFERENCE",
    "Arrays",
    "DamagedRecord",
    "RunRecord",
    "Store",
    "UnreadableRecord",
    "default_folders",
    "folders_to_read",
    "matching",
    "own_folders",
]
