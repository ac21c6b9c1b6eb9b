"""The options that say where and how runs execute."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cl_bench.errors import UserError
from cl_bench.grammar import number_between, parse_path, parse_text, parse_whole_number, parse_yes_or_no, some_of
from cl_bench.options.option import Options, flag, option, parse_minutes, parse_setting

RESULTS_VARIABLE = "CL_BENCH_RESULTS"
"""Environment variable that names the default folder for results."""
RESULTS_DEFAULT = f"{RESULTS_VARIABLE}, else results/runs"
"""The default folder for results in words, for help texts."""


def default_results() -> Path:
    """The folder for results if none is named: `CL_BENCH_RESULTS`, else `results/runs` in the current folder."""
    return Path(os.environ.get(RESULTS_VARIABLE) or "results/runs")


def parse_jobs(text: str, flag: str) -> int | Literal["auto"]:
    """A number of concurrent runs, or `auto`."""
    if text.strip() == "auto":
        return "auto"
    try:
        return parse_whole_number(text, flag)
    except UserError as error:
        raise UserError(f"{error}, or auto") from None


TrackerName = Literal["csv", "tensorboard", "wandb", "mlflow"]
"""Trackers that runs can log to."""


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions(Options):
    """Where and how runs execute; no option here changes the key of a run."""

    results: Path | None = option(
        "Where and how",
        "Folder that stores the results.",
        parse_path,
        shown=RESULTS_DEFAULT,
        metavar="FOLDER",
    )
    device: str = option("Where and how", "Device: auto, cpu, cuda or cuda:N.", parse_text, "auto")
    compile: bool | None = option(
        "Where and how",
        "Compile passes with torch.compile.",
        parse_yes_or_no,
        shown="on a GPU, if that saves time in this run",
        kind="flag",
        no="--no-compile",
    )
    cuda_graphs: bool = option(
        "Where and how",
        "Replay training steps from CUDA graphs, which small networks need on a GPU.",
        parse_yes_or_no,
        True,
        kind="flag",
        no="--no-cuda-graphs",
        shown="on a GPU",
    )
    deterministic: bool = flag("Where and how", "Repeat bit for bit on a GPU, which is slower; a CPU always does.")
    jobs: int | Literal["auto"] | None = option(
        "Where and how",
        "Concurrent runs on this host, which share its cores or GPUs; auto: as many as finish most on a GPU.",
        parse_jobs,
        shown="1 on a GPU; on a CPU as many as fit",
        metavar="N",
    )
    checkpoint_every: float = option(
        "Where and how",
        "Minutes between checkpoints within a task; every task ends with one.",
        number_between(),
        10.0,
        metavar="MINUTES",
    )
    log: tuple[TrackerName, ...] = option(
        "Where and how",
        "Log each run while it trains: csv, tensorboard, wandb, mlflow, or several of them (csv,wandb).",
        some_of("tracker", *get_args(TrackerName)),
        (),
        metavar="NAMES",
    )
    log_dir: Path | None = option(
        "Where and how", "Folder for logs.", parse_path, shown="logs in the results folder", metavar="FOLDER"
    )
    executor: str = option(
        "Where and how", "Executor: here, ray (all GPUs, or a cluster) or slurm.", parse_text, "here"
    )
    address: str | None = option(
        "Where and how", "With ray: running cluster, auto or HOST:PORT.", parse_text, shown="this host alone"
    )
    gpus_per_run: float | None = option(
        "Where and how",
        "With ray or slurm: GPUs of one run; with ray, 0.5 lets two runs share a GPU.",
        number_between(0, 1, "0 to 1: a run uses one GPU or a share of it"),
        shown="1; on a CPU 0",
        metavar="X",
    )
    cpus_per_run: int | None = option(
        "Where and how", "With ray or slurm: cores and threads of a run.", parse_whole_number, shown="1", metavar="N"
    )
    collect: bool = flag("Where and how", "With ray: return results through Ray, for hosts without a shared disk.")
    partition: str | None = option(
        "Where and how", "With slurm: partition of the jobs.", parse_text, shown="Slurm's default"
    )
    time: int = option(
        "Where and how",
        "With slurm: time limit of a job, as minutes or D-HH:MM:SS.",
        parse_minutes,
        1440,
        shown="1 day",
        metavar="TIME",
    )
    slurm: tuple[str, ...] = option(
        "Where and how",
        "With slurm: another option of sbatch, e.g. account=vision or mem=32G.",
        parse_setting,
        (),
        kind="list",
        metavar="NAME=VALUE",
    )
    force: bool = flag("Where and how", "Repeat runs that are already stored.")
    fail_fast: bool = flag("Where and how", "Stop at the first failed run.")
    dry_run: bool = flag("Trial", "Show the runs, which are stored, and how long the others may take.")

    @property
    def folder(self) -> Path:
        """The folder that stores the results."""
        return self.results or default_results()
