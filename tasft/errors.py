"""The exceptions that stand for what the user can mend."""


class UserError(Exception):
    """A mistake that the user can mend: its text is one sentence that says what is wrong and what to do.

    Entry points print it without a traceback and exit with code 1.
    """


class Unavailable(UserError):
    """What cannot be had as things are: no key, no network, no access. Work that can do without it goes on."""


def first_line(error: BaseException) -> str:
    """The first line of what an error of another library says; its type's name where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
