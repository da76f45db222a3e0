"""The engine process with the double: `python -m tests.worker.double_engine_process`, in place of worker.run_engine.

DOUBLE_STEP_S is its pace; DOUBLE_LOAD is "crash" for a process that dies while loading, "unfit" for a bad folder.
DOUBLE_PROBE_HANGS is a file: the first process to probe its device writes its pid there and hangs, as the device would.
"""

import os
import sys
import threading
import time
from pathlib import Path

from contract.bundle import (
    Architecture,
    ChatFormat,
    ChatFormatKind,
    GenerationDefaults,
    ModelBundle,
    Piece,
    PieceKind,
)
from tests.worker.engine_double import VOCAB, EngineDouble, text_of
from worker.progress import Progress
from worker.run_engine import run_engine
from worker.served import Served
from worker.settings import WorkerSettings


def double_bundle() -> ModelBundle:
    """A bundle for the double's vocabulary."""
    controls = [Piece("<unk>", PieceKind.UNKNOWN), Piece("<s>", PieceKind.CONTROL), Piece("</s>", PieceKind.CONTROL)]
    return ModelBundle(
        pieces=(*controls, *(Piece(text_of(id_), PieceKind.NORMAL) for id_ in range(3, VOCAB))),
        merges=(),
        bos_id=1,
        eos_id=2,
        unk_id=0,
        eos_ids=(2,),
        context_length=100_000,
        vocab_size=VOCAB,
        chat_format=ChatFormat(ChatFormatKind.NONE),
        defaults=GenerationDefaults(),
        quantization="fp16",
        architecture=Architecture("llama", 1, 1, 1, 1),
    )


def load_double(settings: WorkerSettings, progress: Progress) -> Served:
    """In place of worker.load.load."""
    mood = os.environ.get("DOUBLE_LOAD", "")
    if mood == "crash":
        os._exit(3)
    if mood == "unfit":
        raise ValueError(f"{settings.model_path} holds no model")
    step_s = float(os.environ.get("DOUBLE_STEP_S", "0.002"))
    progress.device, progress.quantization, progress.loaded_permille = "double", "fp16", 1000
    return Served(double_bundle(), EngineDouble(pace=lambda: time.sleep(step_s), on_probe=hang_once))


def hang_once() -> None:
    """Hang for ever, if nobody has."""
    mark = os.environ.get("DOUBLE_PROBE_HANGS", "")
    if mark and not os.path.exists(mark):
        Path(mark).write_text(str(os.getpid()))
        threading.Event().wait()


if __name__ == "__main__":
    sys.exit(run_engine(load_double, int(sys.argv[1]), int(sys.argv[2])))
