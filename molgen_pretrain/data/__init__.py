"""Training sequences from JSONL conformers: plan by lengths, materialise by rank.

    files -> line index + lengths -> permutation -> blocks -> packed sequences -> this rank's micro-batches

What goes in: `files` finds them (`decompress` unpacks shards once), `units` turns a line into text or a reason why
not, `tokenizer` text into ids, `reader` reads single lines again.

The one-time pass, whose result is kept by `cache`: `lengths` opens it, or has it made. `file_pass` cuts files into
pieces, which `chunk` counts, in processes of their own (`pass_pool`, `pass_worker`); `index_pass` writes what comes
back, `progress` says how far it is. `line_index` and `token_cache` are what it leaves, opened through `mapped`,
written through `array_file`.

The order of an epoch is arithmetic: a keyed `permutation` that needs no memory, cut into blocks, each packed on
lengths alone (`packing`, `plan`), walked by a `cursor` from any `position`. `mixture` says which source has its turn,
`corpus` numbers the units of all, `summary` describes them.

What comes out: `sequences` as arrays, which `materialise` fills with ids from text or token cache; `batch`,
`token_classes`, `dataset` (the door of this room) and `loader` with its worker processes (`signals`).

Import from the modules: this package imports no torch by itself, so `files` and `tokenizer` stay cheap for
the checks that run before anything heavy.
"""
