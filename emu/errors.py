"""The one exception that means: the caller's input is wrong, and here is what to do about it."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from the user, in one sentence that names the file, node or field, what was expected and what to do.

    The command line prints the sentence and exits with code 2.
    """


def listing(names: Iterable[str]) -> str:
    """Names, as a sentence says them."""
    return ", ".join(f"'{name}'" for name in names) or "nothing"


def suggestion(word: str, known: Iterable[str]) -> str:
    """A question behind a wrong word, where a known one is like it, in any case."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), names, n=1)
    return f" (did you mean '{names[close[0]]}'?)" if close else ""
