"""Checkpoint files: reading returns what was written, and any other content is refused in one sentence."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cl_bench.training.checkpoint import (
    Checkpoint,
    Facts,
    Position,
    Stage,
    UnusableCheckpoint,
    random_state,
    read,
    restore_random_state,
    write,
)

KEY = "0123456789abcdef"
FACTS = Facts(
    key=KEY,
    sessions=3,
    stages=[
        Stage(
            correct=[3, None], correct_task_aware=[4, 2], train_seconds=1.5, eval_seconds=0.5, train_samples=9,
            trainable=7, stored=8,
        )
    ],
    total=[5, 5],
    position=Position(phase=1, epoch=2, step=3, seconds=4.5, samples=6),
    seen=[0, 1],
    trained=["head.weight"],
    traces={"ridge": [{"stage": 0, "value": 0.1}]},
)  # fmt: skip
TENSORS = {
    "model.head.weight": torch.randn(3, 4),
    "model.gram": torch.randn(5, 5, dtype=torch.float64).T,
    "model.tasks": torch.tensor([1, -1]),
    "model.retains": torch.tensor([True, False]),
    "model.empty": torch.zeros(0, 7),
    "optimizer.0.step": torch.tensor(2.0),
}
FEW = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "a.safetensors"
    write(path, Checkpoint(FACTS, TENSORS))
    return path


def test_what_is_written_comes_back(path: Path) -> None:
    found = read(path, KEY)
    assert found is not None
    assert found.facts.model_dump(exclude={"sha256"}) == FACTS.model_dump(exclude={"sha256"})
    assert found.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found.tensors[name].dtype == tensor.dtype
        torch.testing.assert_close(found.tensors[name], tensor, rtol=0, atol=0)
    assert found.part("model.").keys() == {name[6:] for name in TENSORS if name.startswith("model.")}
    assert read(path.with_name("b"), KEY) is None


def test_a_checkpoint_of_another_run_is_refused(path: Path) -> None:
    with pytest.raises(UnusableCheckpoint, match="of another version, or of the run 0123"):
        read(path, "f" * 16)


@FEW
@given(st.data())
def test_no_changed_byte_is_believed(path: Path, data: st.DataObject) -> None:
    whole = path.read_bytes()
    content = bytearray(whole)
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[position]))
    changed = path.with_name("changed")
    changed.write_bytes(bytes(content))
    try:
        found = read(changed, KEY)
    except UnusableCheckpoint as error:
        assert "\n" not in str(error) and changed.name in str(error)
        return
    # A change that only replaces spaces in the header is harmless.
    assert found is not None and found.facts.stages == FACTS.stages and found.tensors.keys() == TENSORS.keys()


@FEW
@given(st.binary(max_size=400))
def test_no_other_bytes_are_believed(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UnusableCheckpoint):
        read(path, KEY)


@pytest.mark.parametrize(
    "header",
    [
        {"model.a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 16]}},
        {"model.a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]}},
        {"model.a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
        {"model.a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**15]}},
        {"../../etc/passwd": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
        {"model.a": {"dtype": "PICKLE", "shape": [4], "data_offsets": [0, 16]}},
        {"__metadata__": {"cl-bench": "[" * 10_000}},
        {"__metadata__": {"cl-bench": json.dumps({"key": KEY, "stages": [{}] * 1000})}},
        {"__metadata__": {"cl-bench": json.dumps({"key": KEY, "total": [float("nan")]})}},
    ],
    ids=str,
)
def test_hostile_headers_are_refused(path: Path, header: dict[str, object]) -> None:
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(16))
    with pytest.raises(UnusableCheckpoint):
        read(path, KEY)


def test_global_generators_go_on_where_they_were() -> None:
    random.gauss(0, 1)
    state = random_state()
    drawn = (torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random(), random.gauss(0, 1)])
    restore_random_state(state)
    assert drawn == (torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random(), random.gauss(0, 1)])
