"""Logs a run to Weights & Biases, online or offline as `WANDB_MODE` says."""

from __future__ import annotations

import json
import netrc
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from cl_bench.errors import UserError
from cl_bench.files import write_atomically
from cl_bench.running.trackers.rows import RowFile
from cl_bench.running.trackers.tracker import RunFacts, Status, Tracker


class WandbTracker(Tracker):
    """One run of W&B per run; a resumed run continues it under its id.

    What W&B has not sent or written yet is lost when a process is killed. So all rows are also in a file, from which a
    resumed run logs again what is missing: online, W&B knows its last step; offline, the run is written anew.
    """

    package = "wandb"
    _run: Any = None

    @classmethod
    def prepare(cls, folder: Path) -> Mapping[str, str]:
        import wandb

        known = wandb.Settings()
        known.update_from_system_settings()
        known.update_from_env_vars(dict(os.environ))
        # W&B's own older names of its modes.
        mode = {"dryrun": "offline", "run": "online"}.get(known.mode, known.mode)
        server = known.base_url
        if mode in ("online", "shared") and not (known.api_key or known.identity_token_file or _login(server)):
            raise UserError(
                f"--log wandb finds no login for {server}; type `wandb login`, set WANDB_API_KEY, or log on this disk "
                "with WANDB_MODE=offline"
            )
        project = known.project or "cl-bench"
        return {"mode": mode, "project": project, "entity": known.entity or "", "base_url": server}

    def start(self, facts: RunFacts) -> None:
        import wandb

        self._rows = RowFile(self.path(facts, ".csv"), facts.steps)
        self._state = self.path(facts, ".json")
        self._id = self._unfinished() or uuid.uuid4().hex[:16]
        self._remember(False)
        if self.settings["mode"] == "offline":
            for earlier in self.folder.glob(f"offline-run-*-{self._id}"):
                shutil.rmtree(earlier)
        about = {"key": facts.key, "label": facts.label, **facts.settings, "environment": facts.environment}
        self._run = wandb.init(
            # Below this folder, W&B makes one that is named like this tracker's.
            dir=self.folder.parent,
            id=self._id,
            resume="allow",
            reinit="create_new",
            name=facts.name,
            group=facts.label,
            config={**about, **facts.hyperparameters},
            allow_val_change=True,
            mode=cast(Any, self.settings["mode"]),
            project=self.settings["project"],
            entity=self.settings["entity"] or None,
            settings=wandb.Settings(
                base_url=self.settings["base_url"], silent=True, console="off", disable_git=True, disable_code=True
            ),
        )
        for step, values in self._rows.rows():
            self._send(step, values)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._rows.append(step, values)
        self._send(step, values)

    def finish(self, status: Status) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if status == "finished" else 1)
            self._remember(status == "finished")

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        # A run that W&B resumes is at the step after its last.
        if step >= self._run.step:
            self._run.log(dict(values), step=step)

    def _unfinished(self) -> str | None:
        """The id of an earlier process's run, unless that is finished or not known."""
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            return None if state["finished"] else str(state["id"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _remember(self, finished: bool) -> None:
        write_atomically(self._state, f"{json.dumps({'id': self._id, 'finished': finished})}\n".encode())


def _login(server: str) -> bool:
    """Whether `wandb login` has left a key for this server."""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(urlsplit(server).netloc) is not None
    except (OSError, netrc.NetrcParseError):
        return False
