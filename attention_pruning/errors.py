"""The one exception for bad input from a user."""


class InputError(ValueError):
    """A problem with what the user gave: a file, a flag, a shape.

    The message is one line that names the thing, what was expected and what was found. Command-line entry points print
    it as ``error: MESSAGE`` and exit with status 2.
    """
