"""The one exception a person is meant to read."""


class SimudyError(ValueError):
    """Bad input. The message is one line: what is wrong, and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """
