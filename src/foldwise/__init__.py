"""Foldwise: from an image competition's raw folder to a submission you can trust."""

__version__ = "0.1.0"


class UserError(Exception):
    """Something the user can mend: one line that names the file, row or key, and the remedy.

    Scripts print it on stderr without a traceback and exit with status 2.
    """
