"""What a user sees when a run is done: the summary and curves.png."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from molgen_pretrain.metrics.rows import read_rows
from molgen_pretrain.metrics.summary import summary_table, summary_text
from molgen_pretrain.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def finish_report(
    directory: RunDirectory,
    *,
    milestones: Sequence[int],
    unigram_entropy: float | None,
    hf_export: Path,
    wall_seconds: float,
) -> None:
    """Draw curves.png and print the summary table, from metrics.jsonl alone."""
    # matplotlib takes half a second to import, which no first step should wait for.
    from molgen_pretrain.metrics.curves import plot_curves

    rows = read_rows(directory.metrics)
    plot_curves(rows, directory.curves, directory.name, milestones, unigram_entropy)
    places = {
        "run directory": directory.root,
        "checkpoints": directory.checkpoints,
        "Hugging Face": hf_export,
        "curves": directory.curves,
        "metrics": directory.metrics,
    }
    table = summary_table(
        rows,
        milestones,
        {label: path for label, path in places.items() if path.exists()},
        unigram_entropy,
        wall_seconds,
    )
    logger.info("\n%s", summary_text(table))
