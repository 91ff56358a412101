"""A sweep from its points to its report: what is trained, in which order, and what became of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from molgen_pretrain.checkpoint import CheckpointLayout
from molgen_pretrain.errors import UserError
from molgen_pretrain.launchers.jobs import Entry, Job, JobLauncher, Outcome, State
from molgen_pretrain.metrics.rows import read_rows
from molgen_pretrain.run_directory import RunDirectory
from molgen_pretrain.run_lock import held_run
from molgen_pretrain.signals import Interrupted
from molgen_pretrain.sweep.directory import SweepDirectory
from molgen_pretrain.sweep.points import Point, stored_differences
from molgen_pretrain.sweep.preview import preview
from molgen_pretrain.sweep.task import Fork, Task, wants_traceback
from molgen_pretrain.sweep.tree import Edge, build_forest

logger = logging.getLogger(__name__)


@dataclass
class Sweep:
    """Points, and the forest of edges that training them takes."""

    directory: SweepDirectory
    points: Sequence[Point]
    command: Sequence[str]  # what the user typed
    share: bool  # whether points that begin alike are trained once as far as they do
    outcomes: dict[str, Outcome] = field(default_factory=dict)  # by edge, of this start

    def __post_init__(self) -> None:
        self.forest = build_forest([point.candidate() for point in self.points], share=self.share)
        self._edges = {edge.key: edge for edge in self.forest.edges}
        self._points = {point.name: point for point in self.points}

    def run(self, launcher: JobLauncher, entry: Entry, *, open_log: Callable[[Path], None]) -> None:
        """Train what is missing, and write the report. `open_log`: where the log goes from now on.

        Raises UserError where a point did not finish, Interrupted where a signal stopped the sweep.
        """
        root = self.directory.root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"paths.runs={root.parent}: {error}; give a folder that can be written") from error
        with held_run(root, wait_seconds=0):
            self._check_stored()
            open_log(self.directory.log)
            overrides = {point.name: point.varied for point in self.points}
            self.directory.write_manifest(self.forest, overrides, self.command)
            logger.info("sweep directory: %s", root)
            logger.info("%s", self.preview())
            jobs = self._jobs(reports=launcher.unattended)
            if not jobs:
                logger.info("every point is finished; run_name=NAME trains them again, in a folder of that name")
            try:
                launcher.run(jobs, entry, folder=self.directory.jobs, on_end=self._note)
            except Interrupted as stop:
                raise Interrupted(stop.number, "the same command goes on with the sweep") from stop
            finally:
                self._report()
        self._conclude()

    def preview(self) -> str:
        """The tree, the steps of each edge, the total against independent runs, and what is done already."""
        return preview(self.forest, done={edge.key: self._steps_done(edge) for edge in self.forest.edges})

    def return_value(self, point: Point) -> float | None:
        """What a sweeper that optimises looks at: the last validation loss, or else the last training loss."""
        metrics = self.directory.run(self._edges[point.name]).metrics
        rows = read_rows(metrics) if metrics.exists() else []
        for kind in ("validation", "train"):
            losses = [loss for row in rows if row.get("kind") == kind and isinstance(loss := row.get("loss"), float)]
            if losses:
                return losses[-1]
        return None

    def _jobs(self, *, reports: bool) -> list[Job]:
        """One for each edge that is to be trained, parents first. `reports`: each brings the report up to date."""
        missing = self._missing()
        return [self._job(edge, missing, reports=reports) for edge in self.forest.edges if edge.key in missing]

    def _job(self, edge: Edge, missing: set[str], *, reports: bool) -> Job:
        folder = self.directory.run(edge).root
        fork = None
        if edge.parent is not None:
            fork = Fork(self.directory.run(self._edges[edge.parent]).root, edge.start)
        task = Task(
            run=self._points[edge.owner].frozen(edge, self.directory),
            folder=folder,
            fork=fork,
            reports_to=self.directory.root if reports else None,
            wants_traceback=wants_traceback(),
        )
        after = (edge.parent,) if edge.parent in missing else ()
        return Job(key=edge.key, payload=task, folder=folder, after=after)

    def _missing(self) -> set[str]:
        """Keys of edges to be trained: leaves that are not finished, and trunks that one of them still needs."""
        missing: set[str] = set()
        for edge in reversed(self.forest.edges):  # children first
            children = self.forest.children(edge.key)
            is_needed = edge.is_leaf or any(c.key in missing and not self._is_begun(c) for c in children)
            if is_needed and not self._is_done(edge):
                missing.add(edge.key)
        return missing

    def _is_done(self, edge: Edge) -> bool:
        facts = self.directory.run(edge).read_facts()
        if edge.is_leaf:
            return facts.get("status") == "finished"
        return facts.get("status") in ("finished", "stopped") and edge.end in self._saved(edge)

    def _is_begun(self, edge: Edge) -> bool:
        """Whether it has a checkpoint of its own to start from."""
        return any(step >= edge.start for step in self._saved(edge))

    def _steps_done(self, edge: Edge) -> int:
        if self._is_done(edge):
            return edge.end - edge.start
        return max([step - edge.start for step in self._saved(edge) if step > edge.start], default=0)

    def _saved(self, edge: Edge) -> list[int]:
        return CheckpointLayout(self.directory.run(edge).checkpoints).committed_steps()

    def _check_stored(self) -> None:
        """Raises UserError where a directory holds the run of another config: a YAML file may have been edited."""
        problems = []
        for edge in self.forest.edges:
            stored = self.directory.run(edge)
            if stored.config.exists() and (found := stored_differences(self._points[edge.owner], stored.config)):
                problems.append(f"{stored.root}: was trained with another config: {'; '.join(found)}")
        if problems:
            advice = "give run_name=NAME for a new sweep, or delete what is no longer wanted"
            raise UserError("\n".join([*problems, f"run_name={self.directory.name}: {advice}"]))

    def _note(self, job: Job, outcome: Outcome) -> None:
        # A rank that dies may take the others with it by a signal, before they can leave with an error.
        if outcome.state is State.STOPPED and RunDirectory(job.folder).read_facts().get("status") == "failed":
            outcome = Outcome(State.FAILED, outcome.detail)
        self.outcomes[job.key] = outcome

    def _report(self) -> None:
        from molgen_pretrain.sweep.report.make import make_report

        try:
            written = make_report([self.directory.root])
        except (OSError, UserError) as error:
            logger.error("no report: %s", error)
        else:
            logger.info("report: %s", written.html)

    def _conclude(self) -> None:
        """Raises UserError where a point did not finish; says so of each."""
        states = {name: self.outcomes.get(name, Outcome(State.FINISHED)) for name in self._points}
        failed = [n for n, outcome in states.items() if outcome.state not in (State.FINISHED, State.SUBMITTED)]
        if failed:
            lines = [f"{n}: {states[n].state.value} ({states[n].detail}){self._reason(n)}" for n in failed]
            advice = "the same command trains what is missing, and nothing else"
            raise UserError("\n".join([*lines, f"{len(failed)} of {len(states)} points did not finish; {advice}"]))

    def _reason(self, name: str) -> str:
        """What the run itself said when it failed."""
        error = self.directory.run(self._edges[name]).read_facts().get("error")
        return f": {error.splitlines()[0]}" if error else ""
