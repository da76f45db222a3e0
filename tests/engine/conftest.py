"""Model folders that transformers wrote, made once for all tests of the engine's tensor half."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engine.oracle import GROUPED, MULTI_HEAD, Shape, random_llama, save

SHAPES = {shape.name: shape for shape in (MULTI_HEAD, GROUPED)}


@pytest.fixture(scope="session", params=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> Shape:
    """Multi-head attention with its own lm_head, and grouped-query attention with a tied one."""
    return SHAPES[str(request.param)]


@pytest.fixture(scope="session")
def half_folder(shape: Shape, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unquantized float16 folder."""
    return save(random_llama(shape, seed=1), tmp_path_factory.mktemp(f"half-{shape.name}"), torch.float16)


@pytest.fixture(scope="session")
def full_folder(shape: Shape, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unquantized float32 folder."""
    return save(random_llama(shape, seed=2), tmp_path_factory.mktemp(f"full-{shape.name}"), torch.float32)
