"""The one exception that stands for a mistake of the user."""


class UserError(Exception):
    """A mistake that the user can mend: its text is one sentence that says what is wrong and what to do.

    Entry points print it without a traceback and exit with code 1.
    """
