"""Processes, the device mesh, and FSDP2: how one model spreads over ranks.

Import from the submodules; all but `degrees` load torch.
"""
