"""Workers that share one GPU: each fills its share and no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from worker.engine.kv_tensors import free_gpu_bytes

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda:0")


@pytest.fixture
def total() -> Iterator[int]:
    """Bytes of the GPU; afterwards all of it may be filled again."""
    yield torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0, CUDA)


def test_a_share_bounds_what_is_free(total: int) -> None:
    """What this process has taken counts against its share; what others have taken bounds it too."""
    torch.cuda.set_per_process_memory_fraction(0.25, CUDA)
    before = free_gpu_bytes(CUDA, 1.0)
    taken = torch.empty(1 << 30, dtype=torch.uint8, device=CUDA)
    after = free_gpu_bytes(CUDA, 1.0)
    del taken

    assert 0 < before <= total // 4
    assert before - after == 1 << 30


def test_beyond_its_share_a_worker_gets_nothing(total: int) -> None:
    """An error here, and not in the other worker."""
    torch.cuda.set_per_process_memory_fraction(0.1, CUDA)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(total // 5, dtype=torch.uint8, device=CUDA)
