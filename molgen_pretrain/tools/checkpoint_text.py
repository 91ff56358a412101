"""How the checkpoint tool writes tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table


def make_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """A plain table whose cells stay on one line."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return table
