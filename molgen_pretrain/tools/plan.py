"""Says what a run will need, before it queues.

    python -m molgen_pretrain.tools.plan [the same overrides as the run] [--gpu h200] [--gpus 1,8,64] [--mfu 0.5]

Prints parameters, FLOPs per token, the memory of a rank by kind, the largest local batch that fits, tokens and steps
per epoch, and hours and communication on more and more GPUs. All of it is arithmetic (docs/planning.md): no data is
read besides the cache's totals, no weight is made.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from molgen_pretrain.config.messages import explain
from molgen_pretrain.config.schema import world_size_from_env
from molgen_pretrain.errors import UserError
from molgen_pretrain.planning.gpus import GPUS, Gpu
from molgen_pretrain.tools.command_line import run_reporting
from molgen_pretrain.tools.plan_data import plan_data
from molgen_pretrain.tools.plan_figures import Figures, work_out
from molgen_pretrain.tools.plan_report import report
from molgen_pretrain.tools.plan_run import plan_run

_CPU = "cpu"
_TABLE_WIDTH = 200  # columns: figures are never folded, a narrow terminal wraps the line


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 where the run itself would be refused, with the same message."""
    options = parse(arguments)
    console = Console(highlight=False, markup=False, emoji=False)
    console.width = max(console.width, _TABLE_WIDTH)
    return run_reporting(lambda: show(options, console), explain)


def show(options: argparse.Namespace, console: Console) -> int:
    figures = figure_out(options)
    if options.json:
        print(json.dumps(figures.as_json(), indent=2))
        return 0
    for part in report(figures):
        console.print(part, soft_wrap=True)
    return 0


def figure_out(options: argparse.Namespace) -> Figures:
    """Raises UserError for options and settings that cannot be."""
    if not 0 < options.mfu <= 1:
        raise UserError(f"--mfu={options.mfu:g}: must be above 0 and at most 1; 0.5 is usual")
    gpu = find_gpu(options)
    run = plan_run(
        options.overrides, world_size=options.world_size, config_dir=options.config_dir, on_gpu=gpu is not None
    )
    data = plan_data(run.cfg, options.tokens_per_epoch)
    return work_out(run, data, gpu if run.on_gpu else None, mfu=options.mfu, gpus=gpu_counts(options.gpus))


def find_gpu(options: argparse.Namespace) -> Gpu | None:
    """The GPU that was named, with the bandwidths that were given for it; None for the CPU."""
    if options.gpu == _CPU:
        return None
    if options.gpu not in GPUS:
        raise UserError(f"--gpu={options.gpu}: is not known; known: {', '.join([_CPU, *GPUS])}")
    fields = {
        "memory_gib": "memory_gib",
        "link_gbs": "link_gbs",
        "network_gbs": "network_gbs",
        "gpus_per_node": "per_node",
    }
    given = {option: value for option in fields if (value := getattr(options, option)) is not None}
    for option, value in given.items():
        if value <= 0:
            raise UserError(f"--{option.replace('_', '-')}={value:g}: must be positive")
    return replace(GPUS[options.gpu], **{fields[option]: value for option, value in given.items()})


def gpu_counts(text: str) -> list[int]:
    """`1,8,64` as numbers in order."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--gpus={text}: must be numbers of at least 1, e.g. 1,8,64,1024")
    return sorted({int(part) for part in parts})


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Our own flags, and the rest: the overrides."""
    parser = argparse.ArgumentParser(
        prog="python -m molgen_pretrain.tools.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("overrides", nargs="*", help="group=choice, section.key=value, +experiment=NAME: as for the run")
    add("--gpu", default="h200", metavar="NAME", help=f"{_CPU}, {', '.join(GPUS)} (default: h200)")
    add("--gpus", default="1,8,16,64,256,1024", metavar="N,N,...", help="how many, for the scaling tables")
    add("--mfu", type=float, default=0.5, help="what one GPU reaches by itself (default: 0.5)")
    add("--tokens-per-epoch", type=float, metavar="N", help="default: from the data's cache, where it is there")
    add("--memory-gib", type=float, metavar="N", help="of a GPU")
    add("--link-gbs", type=float, metavar="N", help="GB/s per GPU and direction to the others of its node")
    add("--network-gbs", type=float, metavar="N", help="GB/s per GPU and direction out of its node")
    add("--gpus-per-node", type=int, metavar="N")
    add("--json", action="store_true", help="every figure, for programs")
    add("--world-size", type=int, default=world_size_from_env(), help="processes of the run")
    add("--config-dir", type=Path, metavar="DIR", help="your own choices, as for the run")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
