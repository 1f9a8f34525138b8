"""What can go wrong while measuring."""


class PerfError(RuntimeError):
    """Something cannot be measured; the message says what was found, what was wanted and what to run next."""
