"""The codecs that come with aigi: a name in, its folder out.

No torch at the top, so that a command can list them before anything heavy is loaded.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "weights"
DEFAULT = "catc-small"
"""What codes where nothing else is asked for."""


def shipped() -> dict[str, Path]:
    """Folders of the models by name; each codes at several rates."""
    return {path.parent.name: path.parent for path in sorted(FOLDER.glob("*/config.json"))}
