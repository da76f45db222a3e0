"""Dockerfile: good by hadolint, not root, and made of scripts that run elsewhere too."""

import re
import subprocess
import sys
from pathlib import Path

from tests.herd_process import ROOT
from tests.images.dockerfile import DOCKERFILE, PREPARES_DEBIAN, instructions, steps


def test_hadolint_finds_nothing() -> None:
    """Not even a hint."""
    hadolint = Path(sys.executable).parent / "hadolint"  # of the dev extra
    done = subprocess.run([str(hadolint), str(DOCKERFILE)], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


def test_images_run_as_the_user_that_the_scripts_make() -> None:
    """By number, since Kubernetes cannot tell that a name is not root."""
    uid = re.search(r"readonly HERD_UID=(\d+)", (ROOT / "images/system.sh").read_text())
    assert uid
    users = [line for line in instructions() if line.startswith("USER ")]

    assert users == [f"USER {uid[1]}:{uid[1]}"] * 2


def test_bases_are_named_by_a_full_version() -> None:
    """One base for all stages, of a point release."""
    bases = {line.split()[1] for line in instructions() if line.startswith("FROM ")} - {"build"}

    assert len(bases) == 1
    assert re.fullmatch(r"debian:12\.\d+-slim", bases.pop())


def test_ci_prepares_debian_as_the_images_do() -> None:
    """What the tests of this folder cannot run is run by .ci/run, on a fresh Debian 12."""
    ci = [line.strip() for line in (ROOT / ".ci/run").read_text().splitlines()]
    prepared = [f"images/{script} {' '.join(args)}" for script, args in steps() if script == PREPARES_DEBIAN]

    assert len(prepared) == 3
    assert [line for line in prepared if line not in ci] == []
