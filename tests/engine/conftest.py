"""Model folders that transformers wrote, made once for all tests of the engine's tensor half."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import pytest
import torch

from tests.engine.oracle import GROUPED, MULTI_HEAD, Shape, random_llama, save

Processors: TypeAlias = Callable[[torch.Tensor | None, torch.Tensor], torch.Tensor]
ProcessorsOf: TypeAlias = Callable[..., Processors]

SHAPES = {shape.name: shape for shape in (MULTI_HEAD, GROUPED)}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The models are so small that a second thread only waits for the first; on a busy machine that takes long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.fixture(scope="session")
def logits_process() -> ModuleType:
    """The module of transformers that holds its logits processors (its import takes many seconds)."""
    from transformers.generation import logits_process as module

    assert isinstance(module, ModuleType)
    return module


@pytest.fixture(scope="session")
def processors_of() -> ProcessorsOf:
    """What `generate` would apply for these settings: transformers makes the list, so the order is its own."""
    from transformers import GenerationConfig

    model = random_llama(Shape("tiny", 16, 16, 1, 1, 1, 16, 32), seed=1)

    def build(prompt_len: int, eos_token_ids: Sequence[int] = (), **settings: object) -> Processors:
        config = GenerationConfig(do_sample=True, **settings)
        if eos_token_ids:
            config._eos_token_tensor = torch.tensor(eos_token_ids)
        processors: Processors = model._get_logits_processor(config, input_ids_seq_length=prompt_len, device="cpu")
        return processors

    return build
