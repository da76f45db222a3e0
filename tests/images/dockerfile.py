"""What Dockerfile and .dockerignore say, for tests that do the same without docker."""

import re
import shutil
from pathlib import Path

from tests.herd_process import ROOT

DOCKERFILE = ROOT / "Dockerfile"
PREPARES_DEBIAN = "system.sh"  # needs root and apt: .ci/run runs it, not the tests

_STEP = re.compile(r"RUN (?:--mount=\S+ )*(?:PATH=\S+ )?(?:\S*/)?(\w+\.sh)((?: \S+)+)")


def instructions() -> list[str]:
    """The lines of Dockerfile, continued ones joined, without comments."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    return [re.sub(r"\s+", " ", line) for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines() if line]


def steps() -> list[tuple[str, list[str]]]:
    """Script of images/ and arguments of every RUN, in order."""
    found = []
    for line in instructions():
        if line.startswith("RUN "):
            step = _STEP.fullmatch(line)
            assert step, f"{line}: not a script of images/"
            found.append((step[1], step[2].split()))
    return found


def copy_context(folder: Path) -> Path:
    """Copy what .dockerignore lets through, which is all that docker would see."""
    names = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder
