"""Optimizer, parameter groups, and the object that applies a schedule to them.

Import from the submodules; they load torch.
"""
