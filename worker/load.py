"""Loads what an engine process serves: the model with its engine, and the bundle that gateways need."""

import dataclasses

import structlog
import torch

from contract.bundle import ChatFormat, ChatFormatKind
from contract.event_loop import freeze_loaded
from worker.bundle import build_bundle, token_pieces
from worker.engine.config import ActivationFormat, KVFormat, LlamaConfig, Quantization
from worker.engine.engine import Engine, EngineSettings
from worker.engine.loader import load_model
from worker.progress import Progress
from worker.served import Served
from worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

_CHAT_FORMATS = {
    "auto": None,
    "llama2": ChatFormat(ChatFormatKind.LLAMA2),
    "none": ChatFormat(ChatFormatKind.NONE),
}


def load(settings: WorkerSettings, progress: Progress) -> Served:
    """Load the folder of the settings.

    Raises ValueError (UnsupportedModel, UnsupportedSetting, BrokenCheckpoint, ModelFolderError) or FileNotFoundError
    for a folder that cannot be served with these settings.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = _choose_device(settings.device, settings.gpu_share)
    quantization = _choose_quantization(settings)
    progress.device = str(device)
    progress.quantization = "fp16" if quantization is Quantization.NONE else quantization.value

    def note(fraction: float) -> None:
        progress.loaded_permille = int(fraction * 1000)

    bundle = build_bundle(
        settings.model_path, quantization=progress.quantization, chat_format=_CHAT_FORMATS[settings.chat_format]
    )
    model = load_model(
        settings.model_path,
        quantization,
        device,
        kv_bytes=settings.kv_cache_bytes or None,
        progress=note,
        fixed_rows=settings.max_sequences if settings.deterministic else 0,
        kv_format=KVFormat(settings.kv_cache_format),
        prefill_activations=ActivationFormat(settings.prefill_activations),
    )
    log.info("model on device", device=str(device), quantization=progress.quantization, kernels=model.kernels)
    freeze_loaded()  # a pass over all that was loaded would stop the engine for ten steps
    bounds = EngineSettings(
        settings.max_sequences, settings.max_step_tokens, settings.prefill_chunk, settings.deterministic
    )
    served_context = min(bundle.context_length, model.max_context)  # a small KV cache shortens it
    return Served(
        bundle=dataclasses.replace(bundle, context_length=served_context),
        engine=Engine(model, token_pieces(bundle), bounds),
    )


def _choose_device(name: str, gpu_share: float) -> torch.device:
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= num_gpus:
            raise ValueError(f"device {name!r} was asked for; this process sees {num_gpus or 'no'} GPUs")
        torch.cuda.set_device(device)
        torch.cuda.set_per_process_memory_fraction(gpu_share, device)
    return device


def _choose_quantization(settings: WorkerSettings) -> Quantization:
    if settings.quantization != "auto":
        return Quantization(settings.quantization)
    return LlamaConfig.from_folder(settings.model_path).saved_quantization
