"""Errors that a person is meant to read.

Every message names the thing, the value that was wrong and what to do about it; the command
line tools print it as one sentence and exit with status 1, without a traceback.
"""


class M2MError(Exception):
    """Base of all errors M2M raises on purpose."""


class ConfigError(M2MError):
    """A configuration value, file or key is wrong or missing."""


class UnsupportedHost(M2MError):
    """This machine lacks something M2M needs (a privilege, a kernel feature, a mount)."""
