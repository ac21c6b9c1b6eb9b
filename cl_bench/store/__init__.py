"""The results store: one JSON and one npz file per run, validated on every read."""

from cl_bench.store.folders import REFERENCE, RESULTS, folders_to_read
from cl_bench.store.predictions import Arrays
from cl_bench.store.record import RunRecord
from cl_bench.store.store import CHECKPOINTS, DamagedRecord, Store, UnreadableRecord, matching

__all__ = [
    "CHECKPOINTS",
    "REFERENCE",
    "RESULTS",
    "Arrays",
    "DamagedRecord",
    "RunRecord",
    "Store",
    "UnreadableRecord",
    "folders_to_read",
    "matching",
]
