"""The typed configuration: one dataclass per config group, checks that span groups, user-facing errors.

Nothing here imports torch: a mistake in a config is reported before anything heavy loads.
"""
