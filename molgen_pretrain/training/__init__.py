"""A run from plain config to summary: the runner builds, the trainer loops.

Import from the submodules; they load torch.
"""
