"""Training sequences from JSONL conformers: plan by lengths, materialise by rank.

A one-time pass over the files stores where each line starts and how many tokens its unit has, where there is
room the tokens too (`lengths`, `line_index`, kept by `cache`). From then on the order of an epoch is arithmetic:
a keyed permutation that needs no memory (`permutation`) cut into blocks, each packed into sequences on lengths
alone (`packing`, `plan`, `cursor`); of several sources, whose turn it is (`mixture`, `corpus`). A rank reads and
tokenizes, or copies, only the units of its own sequences (`materialise`, `dataset`, `batch`, `loader`).

    files -> line index + lengths -> permutation -> blocks -> packed sequences -> this rank's micro-batches

Import from the modules: this package imports no torch by itself, so `files` and `tokenizer` stay cheap for
the checks that run before anything heavy.
"""
