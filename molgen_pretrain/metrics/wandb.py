"""Weights & Biases, online or offline; never a reason for a run to stop or to wait."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molgen_pretrain.errors import UserError
from molgen_pretrain.metrics.logger import Sink
from molgen_pretrain.metrics.rows import Row, labelled_values

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

MODES = ("offline", "online")


class WandbSink(Sink):
    """One wandb run for the whole life of a training run, restarts included (`run_id` names it).

    The environment wins over the arguments where it speaks: WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY,
    WANDB_GROUP, WANDB_DIR, WANDB_RUN_NAME. Offline runs lie in `<directory>/wandb` until `wandb sync`.

    `inherited`: rows of steps that another run trained for this one, sent first, so that its curves are whole.

    `timeout_seconds` bounds each wait for the network in online mode: log-in, start, and the last upload.
    """

    name = "wandb"

    def __init__(
        self,
        run_id: str,
        *,
        mode: str,
        directory: Path,
        run_name: str | None = None,
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        config: Mapping[str, Any] | None = None,
        inherited: Sequence[Row] = (),
        timeout_seconds: float = 60.0,
    ) -> None:
        if mode not in MODES:
            raise UserError(f"metrics.wandb={mode}: must be one of {', '.join(MODES)} or disabled")
        self._run_id = run_id
        self._mode = os.environ.get("WANDB_MODE") or mode
        self._directory = Path(os.environ.get("WANDB_DIR") or directory)
        self._run_name = os.environ.get("WANDB_RUN_NAME") or run_name
        self._project = os.environ.get("WANDB_PROJECT") or project
        self._entity = os.environ.get("WANDB_ENTITY") or entity
        self._group = os.environ.get("WANDB_GROUP") or group
        self._config = dict(config or {})
        self._inherited = inherited
        self._timeout_seconds = timeout_seconds
        self._run: wandb.Run | None = None
        self._kinds: set[str] = set()

    def open(self) -> None:
        """Start or continue the wandb run. Raises whatever wandb raises: no package, no key, no network."""
        import wandb

        self._directory.mkdir(parents=True, exist_ok=True)
        if self._mode == "online" and not wandb.login(timeout=int(self._timeout_seconds)):
            raise RuntimeError("not logged in; run `wandb login`, set WANDB_API_KEY or use metrics.wandb=offline")
        self._run = wandb.init(
            id=self._run_id,
            resume="allow",
            mode=self._mode,  # type: ignore[arg-type]
            dir=self._directory,
            name=self._run_name,
            project=self._project,
            entity=self._entity,
            group=self._group,
            config=self._config,
            # A run of the same process that died without closing must not receive this run's rows.
            reinit="finish_previous",
            settings=self._settings(),
        )
        logger.info("wandb: %s run %s in %s", self._mode, self._run_id, self._run.dir)
        if self._mode == "online":
            logger.info("wandb: %s", self._run.url)
        for row in self._inherited:
            self.log(row)

    def _settings(self) -> wandb.Settings:
        import wandb

        # runtime.log already holds the console, and wandb's own messages would tear the progress bar.
        settings: dict[str, Any] = {
            "console": "off",
            "silent": True,
            "init_timeout": self._timeout_seconds,
        }
        if "finish_timeout" in wandb.Settings.model_fields:  # older wandb waits for the upload without limit
            settings["finish_timeout"] = self._timeout_seconds
        return wandb.Settings(**settings)

    def log(self, row: Row) -> None:
        """Send one row; its values are charted over `step`, also where a resumed run repeats steps."""
        assert self._run is not None, "log before open"
        kind = str(row["kind"])
        if kind not in self._kinds:
            self._run.define_metric(f"{kind}/*", step_metric="step")
            self._kinds.add(kind)
        self._run.log({"step": row["step"], **labelled_values(row)})

    def close(self, exit_code: int) -> None:
        """Finish the run as succeeded (0) or failed and wait for the upload, at most `timeout_seconds`."""
        if self._run is not None:
            self._run.finish(exit_code=exit_code)
            self._run = None
