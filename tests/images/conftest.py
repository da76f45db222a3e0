"""The environments of both images, made once by the RUN lines of Dockerfile, with other folders for its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.herd_process import ROOT
from tests.images.dockerfile import PREPARES_DEBIAN, copy_context, steps


@dataclass(frozen=True, slots=True)
class Images:
    """Where the stages of Dockerfile left their files."""

    context: Path
    wheels: Path
    gateway: Path
    worker: Path

    def folder(self, path: str) -> str:
        """The folder that stands for one of Dockerfile's; anything else as it is."""
        ours = {"/wheels": self.wheels, "/opt/gateway": self.gateway, "/opt/worker": self.worker}
        return str(ours.get(path.removeprefix("/build"), path))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """Wheels and both environments. CI's bounds hold here, so that torch is the CPU's."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "src").mkdir()
    images = Images(copy_context(folder / "src"), *(folder / name for name in ("wheels", "gateway", "worker")))
    env = clean_environment({"PYTHON": sys.executable, "UV_CONSTRAINT": str(ROOT / "constraints.txt")})
    for script, arguments in steps():
        if script != PREPARES_DEBIAN:
            command = [str(images.context / "images" / script), *map(images.folder, arguments)]
            done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}: {done.stderr}"
    yield images
    shutil.rmtree(folder)  # a GB, which pytest would keep for its last three runs


def clean_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This process' environment without what belongs to its own virtual environment or to a herd, and these."""
    ours = ("PYTHON", "VIRTUAL_ENV", "HERD_", "OTEL_", "UV_CONSTRAINT", "UV_COMPILE_BYTECODE")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")
    return {**inherited, "UV_FIND_LINKS": links, **variables}
