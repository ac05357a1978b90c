"""What an examination finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass

OK, WARN, ERROR = "ok", "warn", "error"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: str
    """ok; warn: depth may come all the same; error: it does not, or must not be trusted."""
    check: str
    """What was looked at: ros, image, student, ..."""
    what: str
    """What was found, with the values."""
    remedy: str = ""
    """What would mend it; empty where all is well."""

    def as_dict(self) -> dict[str, str]:
        """Return plain values, fit for JSON."""
        return asdict(self)


def split_remedy(text: str, otherwise: str) -> tuple[str, str]:
    """Split an error's text, `what is wrong; what would do`, at its last semicolon.

    Where it has none, the remedy is `otherwise`.
    """
    what, _, remedy = text.rpartition("; ")
    return (what, remedy) if what else (text, otherwise)
