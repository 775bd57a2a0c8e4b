"""The one exception for bad input from a user."""

#: Characters of a message; what a file holds instead of a word can be longer.
_LONGEST = 2000


class InputError(ValueError):
    """A problem with what the user gave: a file, a flag, a shape.

    The message is one line that names the thing, what was expected and what was found. Command-line entry points print
    it as ``error: MESSAGE`` and exit with status 2. What would end the line or cannot be printed, in a value or a name
    that the message quotes, is written as Python escapes it; the middle of a very long message is left out.
    """

    def __init__(self, message: str) -> None:
        line = "".join(letter if letter.isprintable() else _escaped(letter) for letter in str(message))
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST * 3 // 4]} [...] {line[-_LONGEST // 4 :]}"
        super().__init__(line)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
