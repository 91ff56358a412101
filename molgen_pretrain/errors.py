"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """A mistake in what the user gave: configuration, paths, files.

    The command line prints its message without a traceback and exits non-zero. A message names what is
    wrong (`section.key=value` where it is a setting), the rule, and the legal values or the fix.
    """
