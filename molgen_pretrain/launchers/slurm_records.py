"""The launcher's folder of submitted jobs: what was submitted, and what rank 0 of each said of its end."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from molgen_pretrain.errors import UserError
from molgen_pretrain.launchers.jobs import Outcome, State
from molgen_pretrain.run_directory import write_text

logger = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True)
class JobRecord:
    """A job as it was submitted."""

    key: str
    id: str  # Slurm's, `123` or `123_4`; of a job on this machine that of its process
    run: str  # the run directory
    script: str | None  # the sbatch script, beside jobs.json; None on this machine
    logs: tuple[str, ...]  # one per rank, beside jobs.json
    after: tuple[str, ...]  # keys of the jobs it waits for
    submitted_at: str


@dataclass(frozen=True)
class JobFolder:
    """The one place that spells the launcher's files; the scripts and logs in it are named by submitit."""

    root: Path

    @property
    def jobs(self) -> Path:
        return self.root / "jobs.json"

    def outcome(self, key: str) -> Path:
        """Written by rank 0 when it ends; not there while the job waits or runs for the first time."""
        return self.root / f"{key}.outcome.json"

    def log(self, record: JobRecord, rank: int) -> Path:
        """What this rank prints."""
        return self.root / record.logs[rank]

    def read(self) -> tuple[str | None, dict[str, JobRecord]]:
        """Where the jobs were submitted to (`slurm` or `local`; None: nothing was), and each by its key.

        Raises UserError for a file that is not ours.
        """
        try:
            content = json.loads(self.jobs.read_text())
            records = [
                JobRecord(**{**job, "logs": tuple(job["logs"]), "after": tuple(job["after"])})
                for job in content["jobs"]
            ]
            return content["kind"], {record.key: record for record in records}
        except FileNotFoundError:
            return None, {}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{self.jobs}: is no record of submitted jobs ({error}); remove it") from error

    def add(self, kind: str, records: Iterable[JobRecord]) -> None:
        """Record what has just been submitted, in place of earlier jobs of the same keys, or of another kind."""
        earlier_kind, earlier = self.read()
        merged = (earlier if earlier_kind == kind else {}) | {record.key: record for record in records}
        content = {"format": FORMAT, "kind": kind, "jobs": [asdict(record) for record in merged.values()]}
        write_text(self.jobs, json.dumps(content, indent=2) + "\n")

    def told(self, key: str) -> Outcome | None:
        """What rank 0 left; None where it has not ended, or could not say."""
        path = self.outcome(key)
        try:
            content = json.loads(path.read_text())
            return Outcome(State(content["state"]), content["detail"])
        except FileNotFoundError:
            return None
        except (OSError, json.JSONDecodeError, KeyError, ValueError) as error:
            logger.warning("%s is not readable (%s) and left aside", path, error)
            return None
