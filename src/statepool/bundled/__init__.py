"""Models that ship inside the package."""

from __future__ import annotations

from pathlib import Path

NAMES = ("tiny", "probe")
"""A small model that talks, and one that finds needles (``statepool probe``)."""


def path(name: str = "tiny") -> Path:
    """Return the folder of a bundled model, in the Hugging Face layout.

    Raises:
        FileNotFoundError: there is no bundled model of that name.
    """
    folder = Path(__file__).parent / name
    if not (folder / "config.json").is_file():
        known = sorted(entry.parent.name for entry in Path(__file__).parent.glob("*/config.json"))
        raise FileNotFoundError(f"no bundled model named {name!r}; there is {', '.join(known) or 'none'}")
    return folder
