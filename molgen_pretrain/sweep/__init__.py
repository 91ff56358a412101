"""Sweeps: the points of a multirun, the prefix tree that shared trunks make of them, and the report about both."""
