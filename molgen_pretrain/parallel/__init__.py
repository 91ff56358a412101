"""How one model spreads over ranks, and what happens when a rank is lost.

`degrees` (how many along each axis) and `layout` (where this rank stands) decide, `parallelize` wraps the model in the
one order, with `tensor_parallel` and `activation_checkpointing`. `distributed` joins and leaves the process group.
`peers` ends the run on every rank when one dies, fails or hangs: `activity` is what a rank says of itself, `watch` the
thread that listens, over the connections of `links`; `ending` makes a cause everybody's verdict.

Import from the submodules; all but `degrees` load torch.
"""
