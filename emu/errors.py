"""The one exception that means: the caller's input is wrong, and here is what to do about it."""

from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from the user, in one sentence that names the file, node or field, what was expected and what to do.

    The command line prints the sentence and exits with code 2.
    """


def listing(names: Iterable[str]) -> str:
    """Names, as a sentence says them."""
    return ", ".join(f"'{name}'" for name in names) or "nothing"
