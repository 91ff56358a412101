"""TensorBoard event files under the run directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from molgen_pretrain.metrics.logger import Sink
from molgen_pretrain.metrics.rows import Row, labelled_values

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardSink(Sink):
    """Scalars named `train/...` and `validation/...`; strings have no place in TensorBoard and are skipped.

    `resume_step` is the step that training continues from: TensorBoard then hides events of later steps that
    earlier event files in the folder hold. None hides nothing.
    """

    name = "tensorboard"

    def __init__(self, directory: Path, resume_step: int | None = None) -> None:
        self.directory = directory
        self._purge_step = None if resume_step is None else resume_step + 1
        self._writer: SummaryWriter | None = None

    def open(self) -> None:
        """Start an event file. Raises ImportError without the tensorboard package, OSError."""
        # A second of import time that runs without TensorBoard do not pay.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.directory), purge_step=self._purge_step)

    def log(self, row: Row) -> None:
        """Write the row's numbers at its step and flush: a live dashboard, and nothing to lose in a kill."""
        assert self._writer is not None, "log before open"
        for tag, value in labelled_values(row).items():
            if isinstance(value, (bool, int, float)):
                self._writer.add_scalar(tag, float(value), row["step"])
        self._writer.flush()

    def rewind(self, step: int) -> None:
        """Go on in an event file that hides what the others say of later steps."""
        self.close(0)
        self._purge_step = step + 1
        self.open()

    def close(self, exit_code: int) -> None:
        """Finish the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
