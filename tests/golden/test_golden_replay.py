"""The command that replays golden files."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import golden
from tests.golden.replay import KINDS, kind_of, main
from tests.helpers import SOAK

Arrays = dict[str, np.ndarray]


def part(name: str, pattern: str) -> Arrays:
    """The arrays of a golden file whose keys match, and what their recipe needs."""
    data = golden.Fixture.load(golden.FOLDER / f"{name}.npz").data
    suites = "|".join(suite for suite in ("d64", "d32", "d48", "gpm") if suite in pattern)
    about = rf"cfg/((prefix|lambda(_[12])?|lr)$|({suites})/)|({suites})/checksum/|" if suites or not pattern else ""
    wanted = re.compile(rf"{about}meta\.|{pattern}")
    found = {key: value for key, value in data.items() if wanted.match(key)}
    if not any(".perm." in key for key in found):
        found.pop("meta.perm", None)
    return found


def run(path: Path, data: Arrays) -> int:
    """The exit status of a replay in this process."""
    np.savez(path, **data)  # type: ignore[arg-type]
    return main([str(path)])


@pytest.mark.parametrize(
    ("name", "pattern", "least"),
    [
        ("sdlora", "d64/t1/|d64/kd64/", 50),
        ("inflora", "d64/t0/|gpm/|sched/", 60),
        ("olora", "d32/", 100),
        ("nlora", "d48/", 50),
        ("clora", "d48/", 40),
        ("prolora", "", 40),
        ("raclora", "", 90),
        ("sora", "", 50),
        ("beamlora", "", 35),
        ("coda", "", 70),
        ("dualprompt", "", 100),
        ("l2p", "", 80),
        ("prototypes", "", 85),
        ("ease", "", 110),
        ("mos", "", 280),
        ("sema", "", 130),
        ("cllora", "", 160),
    ],
)
def test_a_faithful_file_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, pattern: str, least: int
) -> None:
    data = part(name, pattern)
    if name == "inflora":
        data["cfg/d64/run"] = np.array(1)
    assert run(tmp_path / f"{name}.some.npz", data) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"{len(lines)} quantities, 0 failed" and len(lines) > least
    assert all(line.endswith("  pass") for line in lines)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "l2p.npz", **part("l2p", "a"))  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "argv", ["replay", str(tmp_path / "l2p.npz")])
    monkeypatch.delitem(sys.modules, "tests.golden.replay")
    with pytest.raises(SystemExit) as done:
        runpy.run_module("tests.golden.replay", run_name="__main__")
    out, err = capsys.readouterr()
    assert (done.value.code, err) == (0, "")
    assert out.endswith(" quantities, 0 failed\n")


def test_the_name_of_a_collection_is_no_part_of_the_kind() -> None:
    data = golden.Fixture.load(golden.FOLDER / "prolora.npz")
    for name in ("prolora.npz", "zoo-a-prolora.npz", "zoo-a-prolora.seed7.npz"):
        assert kind_of(Path(name), data, None) is KINDS["prolora"]
    with pytest.raises(golden.Unusable, match="says 'zoo-z-prolora'"):
        kind_of(Path("zoo-z-prolora.npz"), data, None)


def corrupted(name: str, pattern: str, key: str, value: float) -> Arrays:
    """Part of a golden file with one number that is off by `value` times the largest."""
    data = part(name, pattern)
    wrong = data[key].copy()
    wrong.flat[min(3, wrong.size - 1)] += value * np.abs(wrong).max()
    return data | {key: wrong}


WRONG = [
    ("sdlora", "d64/t1/mid/", "d64/t1/mid/grad_B/blocks.1.v", "d64/t1/mid/grad_B"),
    ("sdlora", "d64/t0/init/", "d64/t0/init/after3/B/blocks.0.q", "d64/t0/init/after3/B"),
    ("inflora", "gpm/", "gpm/step3/layer2/projector", "gpm/step3/projector"),
    ("inflora", "sched/", "sched/K20", "sched/K20"),
    ("olora", "d48/t1/scaled/", "d48/t1/scaled/grad_A/blocks.0.q", "d48/t1/scaled/grad_A"),
    ("nlora", "d48/", "d48/t1/paper64/penalty", "d48/t1/paper64/penalty"),
    ("clora", "d48/", "d48/t1/init/reg_A/blocks.0.v", "d48/t1/init/reg_A"),
    ("prolora", "", "d64-even/after/BuT/blocks.0.v", "d64-even/after/BuT"),
    ("prolora", "", "d64-uneven/trainable_adapter", "d64-uneven/trainable_adapter"),
    ("raclora", "", "mlp/both/chain1/l2/trained", "mlp/both/chain1/l2/trained"),
    ("sora", "", "d64/lr/grad/gate/blocks.1.q", "d64/lr/grad/gate"),
    ("sora", "", "schedule64/exp_linear", "schedule64/exp_linear"),
    ("beamlora", "", "d64/run/pruned/blocks.1.q", "d64/run/pruned"),
    ("beamlora", "", "d64/run/reset/gate/blocks.0.v", "d64/run/reset/gate"),
    ("coda", "t", "t2.gs_new.A.3", "t2.gs_new.A"),
    ("coda", "t0", "t0.mu0.1.grad.P.4", "t0.mu0.1.grad.P"),
    ("coda", "t", "t1.perm.ce", "t1.perm.ce"),
    ("dualprompt", "", "g_prompt_V.1", "g_prompt_V"),
    ("dualprompt", "t3", "t3.train.e_prompt_K.3", "t3.train.e_prompt_K"),
    ("dualprompt", "test", "test.similarity.4", "test.similarity"),
    ("l2p", "a", "a.grad.head.bias", "a.grad.head.bias"),
    ("l2p", "a", "a.key_loss.per_sample_grad_e_k", "a.key_loss.per_sample_grad_e_k"),
    ("prototypes", "", "simplecil.proto.t1", "simplecil.proto.t1"),
    ("prototypes", "slca", "slca.ca.losses", "slca.ca.losses"),
    ("ease", "main", "main.t1.losses", "main.t1.losses"),
    ("ease", "last_only", "last_only.t2.weight", "last_only.t2.weight"),
    ("mos", "variance", "variance.t2.head.weight", "variance.t2.head.weight"),
    (
        "mos",
        "rel",
        "rel.t1.stored_after_evaluation.2.up_proj.bias",
        "rel.t1.stored_after_evaluation.2.up_proj.bias",
    ),
    ("sema", "t1", "t1.after.3.1.rd.decoder.weight", "t1.after.3.1.rd.decoder.weight"),
    ("cllora", "clean", "clean.t1.ce_step.grad.0.q.up", "clean.t1.ce_step.grad.0.q.up"),
]


@pytest.mark.parametrize(
    ("name", "pattern", "key", "quantity", "value"),
    # What is no number is judged by what all kinds share.
    [(*case, value) for case in WRONG for value in (0.01, np.nan) if value == 0.01 or SOAK or case[0] == "sdlora"],
)
def test_any_wrong_number_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, pattern: str, key: str, quantity: str, value: float
) -> None:
    """Exactly this quantity is marked and counted."""
    assert run(tmp_path / f"{name}.wrong.npz", corrupted(name, pattern, key, value)) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if "FAIL" in line]
    assert len(failed) == 1 and failed[0].startswith(f"{quantity} ") and failed[0].endswith(f"FAIL at {key}")
    assert lines[-1].endswith(" quantities, 1 failed")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("dualprompt", "test.slot.3"),
        ("l2p", "b.tanh.topk_idx"),
        ("prototypes", "ranpac.lambda.t1"),
        ("sema", "t1.phases"),
    ],
)
def test_indices_must_be_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, key: str) -> None:
    data = part(name, key)
    data[key] = data[key] + 1
    assert run(tmp_path / f"{name}.wrong.npz", part(name, "") | data) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert failed and all(line.endswith(f"FAIL at {key}") for line in failed)


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        ("coda", r"t2\.(labels|prompt_V\.\d|mu0\.1\.total_loss|perm\.feature)$"),
        ("olora", r"d48/t1/(scaled/(labels|scaling|after3/B/blocks\.0\.v)|images_checksum)"),
        ("nlora", r"d32/t\d/paper64/|d32/t0/mid/(labels|scaling|features)"),
        ("clora", r"d48/t1/(P_|mid/(labels|scaling|reg_B))"),
        ("coda", r"t1\.logits$"),
        ("dualprompt", r"t3\.(labels|grad\.head\.bias|train\.e_prompt_K\.4)$|test\.slot"),
        ("dualprompt", r"sharedkey\.tanh\.test"),
        ("l2p", r"a\.(labels|prompt_K|key_loss)"),
        ("l2p", r"b\.erf\.(logits|tokens_out|labels|grad\.key)$"),
        ("prototypes", r"(feat|labels)\.t[01]$|ranpac\.(head\.t1|G_trace)|simplecil\.proto\.t[01]"),
        ("prototypes", r"slca\.(feat|ca\.(losses|final_head\.bias))"),
        ("ease", r"main\.t1\.(features|after\.proxy\.sigma)$"),
        ("ease", r"diagonal\.t2\.logits$"),
        ("mos", r"rel\.t2\.(losses|test\.outputs)$"),
        ("sema", r"t2\.(phases|record\.3\.2|test\.logits)$"),
        ("cllora", r"clean\.t1\.(kd|after\.0\.q\.up)$"),
    ],
)
def test_what_is_missing_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, keep: str) -> None:
    assert run(tmp_path / f"{name}.less.npz", part(name, keep)) == 0
    assert "FAIL" not in capsys.readouterr().out


def sliced(data: Arrays, pattern: str, *cut: slice) -> Arrays:
    """Some arrays with fewer entries."""
    return data | {key: value[cut] for key, value in data.items() if re.fullmatch(pattern, key)}


@pytest.mark.parametrize("name", ["coda", "dualprompt", "l2p"])
def test_sizes_come_from_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Of fewer images, and of fewer classes, all that does not average over them is the same."""
    each = (
        r"query|feature|logits|prompt_[KV](\.\d)?|e_prompt_[KV]\.\d|topk_idx|similarity(\.\d)?|slot(\.\d)?|tokens_out"
    )
    data = part(name, rf"(t\d\.|[ab]\.)?((erf|tanh)\.)?(train\.|test\.)?({each})$")
    data = sliced(data, rf"(?!t\d\.train\.e_prompt).*({each})", slice(3))
    data = sliced(data, r".*logits", slice(None), slice(8))
    assert run(tmp_path / f"{name}.small.npz", data) == 0
    out = capsys.readouterr().out
    assert "FAIL" not in out and "not used" not in out and len(out.splitlines()) > 10


@pytest.mark.parametrize(
    ("name", "pattern", "unheard", "renamed"),
    [
        ("sdlora", "d64/t1/mid/", "d64/t1/mid/unheard_of", "d64/t1/mid/grad_B/blocks.1.v"),
        ("sdlora", "d64/t1/mid/", "d64/t1/design/blocks.0/gap", "d64/t1/mid/grad_B/blocks.1.q"),
        ("inflora", "gpm/", "gpm/unheard_of", "gpm/step3/layer2/projector"),
        ("inflora", "sched/", "sched/unheard_of", "sched/K20"),
        ("olora", "d48/", "d48/t1/clipped/grad_A/blocks.0.k", "d48/t1/clipped/losses_steps"),
        ("clora", "d48/", "d48/t1/clipped/loss", "d48/t1/scaled/reg_A/blocks.0.v"),
        ("nlora", "d48/", "d48/t1/released/loss", "d48/t1/paper64/grad_B/blocks.0.v"),
        ("coda", "t", "t0.gap", "t1.perm.ce"),
        ("dualprompt", "test", "test.unheard_of.3", "test.similarity.4"),
        ("l2p", "a", "a.unheard_of.3", "a.grad.head.bias"),
        ("l2p", "a", "a.unheard_of.3", "meta.crc_probe"),
        ("prototypes", "slca", "margin", "slca.ca.losses"),
        ("ease", "main", "main.t2.unheard_of", "main.t1.grad.1.up_proj.weight"),
        ("mos", "once", "once.t1.unheard_of", "once.t1.orth"),
        ("sema", "t1", "t0.after.4.0.up_proj.weight", "t1.detect.2.0.z"),
        ("cllora", "clean", "clean.t2.unheard_of", "clean.t2.orth"),
    ],
)
def test_an_array_that_nothing_uses_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, pattern: str, unheard: str, renamed: str
) -> None:
    """Nor does a renamed one pass: under its new name nothing compares it."""
    data = part(name, pattern) | {unheard: np.zeros(2)}
    data[f"{renamed}_renamed"] = data.pop(renamed)
    assert run(tmp_path / f"{name}.npz", data) == 1
    *_, one, other, last = capsys.readouterr().out.splitlines()
    assert {one, other} == {f"FAIL: nothing uses the array {key}" for key in (unheard, f"{renamed}_renamed")}
    assert last.endswith(" 0 failed, 2 unused arrays")


def test_what_only_informs_need_not_be_used(tmp_path: Path) -> None:
    """InfLoRA's hints about conditioning, where InfLoRA has them, and numbers of what small methods leave out."""
    informative = {"d64/t0/design/blocks.0/gap": np.zeros(()), "d64/t0/memory/blocks.1/margin": np.zeros(2)}
    assert run(tmp_path / "inflora.npz", part("inflora", "sched/") | informative) == 0
    informative = {"aper.t1.logits": np.zeros((2, 3)), "block.out": np.zeros(())}
    assert run(tmp_path / "ease.npz", part("ease", "plain") | informative) == 0
    informative = {"rel.t1.ce_step.grad.0.q.up": np.zeros((2, 3))}
    assert run(tmp_path / "cllora.npz", part("cllora", "clean") | informative) == 0


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says instead of any comparison."""
    out, message = capsys.readouterr()
    assert out == "" and len(message.splitlines()) == 1
    return message


def test_the_name_of_the_file_is_its_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = part("l2p", "a")
    assert run(tmp_path / "l2p.seed7.tiny.npz", data) == 0
    capsys.readouterr()
    assert run(tmp_path / "numbers.npz", data) == 2
    assert "numbers.npz" in (message := one_sentence(capsys)) and "--kind" in message and "l2p" in message
    assert main([str(tmp_path / "numbers.npz"), "--kind", "l2p"]) == 0
    capsys.readouterr()
    assert main([str(tmp_path / "numbers.npz"), "--kind", "lora"]) == 2
    assert "'lora'" in (message := one_sentence(capsys)) and "sdlora, inflora" in message


def test_keys_of_another_kind_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = part("l2p", "a")
    assert run(tmp_path / "sdlora.npz", data) == 2
    assert "'sdlora'" in (message := one_sentence(capsys)) and "those of 'l2p'" in message
    assert main([str(golden.FOLDER / "metrics.json"), "--kind", "coda"]) == 2
    assert "'coda'" in (message := one_sentence(capsys)) and "those of 'metrics'" in message


def test_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong, a renamed and an extra value of a JSON file are noticed, too."""
    assert main([str(golden.FOLDER / "metrics.json")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "19 quantities, 0 failed"
    text = (golden.FOLDER / "metrics.json").read_text()
    path = tmp_path / "metrics.other.json"

    def replayed(change: Callable[[dict[str, Any]], object]) -> tuple[int, list[str]]:
        data = json.loads(text)
        change(data["cases"]["three_equal"]["expected"])
        path.write_text(json.dumps(data))
        return main([str(path)]), capsys.readouterr().out.splitlines()

    status, lines = replayed(lambda expected: expected.update(bwt=expected["bwt"] + 1e-9))
    assert status == 1 and [line.split()[0] for line in lines if "FAIL" in line] == ["bwt"]
    status, lines = replayed(lambda expected: expected.update(backward=expected.pop("bwt")))
    assert status == 1 and "FAIL: nothing uses the array cases/three_equal/expected/backward" in lines
    status, lines = replayed(lambda expected: expected.update(more=[1, 2]))
    assert status == 1 and lines[-1] == "19 quantities, 0 failed, 1 unused array"
    path.write_text("{")
    assert main([str(path)]) == 2 and "metrics.other.json" in one_sentence(capsys)


def test_another_random_stream_is_no_failure_of_the_algorithm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, key = part("sdlora", "d64/t1/"), "d64/t1/images_checksum"
    assert run(tmp_path / "sdlora.stream.npz", data | {key: data[key] * (1 + 1e-6)}) == 2
    out, message = capsys.readouterr()
    assert out == "" and "random stream" in message and key in message and len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (name, f"meta.{key}")
        for name in ("coda", "dualprompt", "l2p", "ease", "mos", "sema", "cllora")
        for key in ("crc_probe", "vit_abs_sum")
    ]
    + [("prototypes", "meta.crc_probe")],
)
def test_the_random_stream_is_verified_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, key: str
) -> None:
    data = part(name, "")
    for wrong in ({key: data[key] * (1 + 1e-6)}, {"meta.prefix": np.array("other.")}):
        assert run(tmp_path / f"{name}.stream.npz", data | wrong) == 2
        out, message = capsys.readouterr()
        assert out == "" and "random stream" in message and len(message.splitlines()) == 1


def test_a_file_that_is_no_fixture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "l2p.other.npz", {"weights": np.zeros(3)}) == 2
    out, message = capsys.readouterr()
    assert out == "" and "other.npz" in message and len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "pattern", "bent"),
    [
        ("sdlora", "d64/t1/", {"cfg/d64/tasks": np.array(["one"])}),
        ("l2p", "", {"a.topk_idx": np.zeros((5, 11))}),
        ("coda", "", {"meta.perm": np.array([7, 8])}),
        ("ease", "", {"meta.batch": np.array([7, 8])}),
        ("mos", "", {"meta.rank": np.array([7, 8])}),
        ("sema", "", {"meta.rank": np.array([7, 8])}),
    ],
)
def test_a_file_whose_arrays_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, pattern: str, bent: Arrays
) -> None:
    assert run(tmp_path / f"{name}.bent.npz", part(name, pattern) | bent) == 2
    message = capsys.readouterr().err
    assert "bent.npz" in message and len(message.splitlines()) == 1


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.npz").write_text("not an archive")
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("absent.npz", "text.npz", "array.npy"):
        assert main([str(tmp_path / name)]) == 2, name
        assert name in capsys.readouterr().err
