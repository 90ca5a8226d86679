"""The one exception that means: the caller's input is wrong, and here is what to do about it."""


class InputError(ValueError):
    """Bad input from the user, in one sentence that names the file, node or field, what was expected and what to do.

    The command line prints the sentence and exits with code 2.
    """
