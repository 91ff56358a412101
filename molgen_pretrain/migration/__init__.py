"""From a TOML file of the replaced stack and its paths.yaml to an experiment file and a paths file of this program.

toml_file   reads the TOML: values, and the line of every key (toml_lines)
aliases     reads paths.yaml: `section:key/rest` becomes an interpolation
keys        the table: every key of the old stack, its type, what it is here or why nothing
translate   applies the table; schedule and start decide what several keys decide together
ledger      what became of every key: carried, obsolete or a problem; nothing else can happen to one
check       composes and validates the result as the run would
files       the text of the two files
report      the table old -> new, and the command that starts the run
"""

from molgen_pretrain.migration.migrate import Migration, migrate

__all__ = ["Migration", "migrate"]
