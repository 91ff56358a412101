"""The whole way: two old files in, two new ones out."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from molgen_pretrain.errors import UserError
from molgen_pretrain.migration.aliases import Aliases
from molgen_pretrain.migration.check import fewest_processes, find_problems
from molgen_pretrain.migration.files import Target, experiment_text, find_target, paths_text
from molgen_pretrain.migration.ledger import Fate, Ledger, shown
from molgen_pretrain.migration.paths_file import read_paths
from molgen_pretrain.migration.problems import raise_all
from molgen_pretrain.migration.toml_file import read_toml
from molgen_pretrain.migration.translate import translate
from molgen_pretrain.run_directory import write_text


@dataclass(frozen=True)
class Migration:
    """The result, not yet written.

    `fates` has every key of the old file, by line; `assumed` are `section.key=value` for what the old stack took
    where the file says nothing; `notes` are what the user should look at.
    """

    fates: Sequence[Fate]
    assumed: Sequence[str]
    notes: Sequence[str]
    command: str
    files: dict[Path, str]

    def write(self) -> None:
        """Raises UserError where a file cannot be written."""
        try:
            for path, text in self.files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, text)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def migrate(
    old: Path, paths: Path | None, out: Path, *, processes: int | None = None, replace: bool = False
) -> Migration:
    """The experiment that an old TOML file is, and the file of places that its paths.yaml is.

    The result has passed the checks that a run of `processes` makes at its start (None: of as many as the degrees
    of parallelism ask for).

    Raises UserError with every mistake of both files, each with its line.
    """
    target = find_target(out, replace=replace)
    file = read_toml(old)
    aliases = Aliases(None if paths is None else read_paths(paths))
    ledger = translate(file, aliases)
    found = [*aliases.problems, *ledger.problems]
    raise_all([*found, *find_problems(ledger, processes or fewest_processes(ledger))])
    command = start_command(target, ledger, processes)
    made_by = "by molgen_pretrain.tools.migrate"
    head = [f"From {old.name}, {made_by}. Start it with", f"  {command}"]
    text = experiment_text(target.name, ledger.choices, ledger.settings, has_places=paths is not None, head=head)
    files = {target.experiment: text}
    if paths is not None:
        head = [f"The places of {paths.name} for +experiment={target.name}, {made_by}."]
        files[target.paths] = paths_text(aliases.tree, head=head)
    return Migration(
        sorted(ledger.fates.values(), key=lambda fate: fate.line),
        [f"{key}={shown(ledger.settings[key])}" for key in ledger.assumed if key not in ledger.origins],
        [*ledger.notes, *aliases.notes],
        command,
        files,
    )


def start_command(target: Target, ledger: Ledger, processes: int | None) -> str:
    """A line for the shell, on this machine: as many processes as asked for, or as the degrees come to."""
    is_open = any(ledger.settings[key] == -1 for key in ledger.settings if key.endswith("_degree"))
    count = processes or (None if is_open else fewest_processes(ledger))
    if count == 1:
        starter = ["python"]
    else:
        # With a degree of -1 any number will do: torchrun counts the devices.
        number = count or os.environ.get("NGPU_PER_NODE") or "gpu"
        starter = ["torchrun", f"--nproc-per-node={number}"]
    return shlex.join([*starter, "-m", "molgen_pretrain", *target.words])
