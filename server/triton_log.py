"""Reads the reasons for refused models out of Triton's log: some are nowhere else (a faulty config.pbtxt, say)."""

from __future__ import annotations

import re

_REASON = re.compile(
    r"""(?:Poll\ failed\ for\ model\ directory|load\ failed\ for\ model)\ '(?P<model>[^']+)':\ (?P<reason>.*?)
        (?:\\n|;|"$)""",
    re.VERBOSE | re.MULTILINE,
)


def reasons_in(log: str) -> dict[str, str]:
    """Return model name => the reason that the log gives for not loading it."""
    errors = "\n".join(line for line in log.splitlines() if line.startswith("E"))
    return {match["model"]: match["reason"] for match in re.finditer(_REASON, errors)}
