"""The worker's settings: every field is read from HERD_WORKER_<FIELD>."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class WorkerSettings(BaseSettings):
    """One worker: a supervisor, its engine process and what serves it. All read the same environment."""

    model_config = SettingsConfigDict(env_prefix="HERD_WORKER_", frozen=True)

    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0", description="redis://, rediss:// or unix:///path, of Redis 7.0 or Valkey"
    )
    model_path: Path = Field(description="a Hugging Face folder: config.json, safetensors, tokenizer")
    model_name: str = Field(
        default="", max_length=128, pattern=r"^[^{}:\s]*$", description="name in the API; empty takes the folder's name"
    )
    quantization: Literal["auto", "none", "int8", "nf4", "nf4-dq"] = Field(
        default="auto", description="how the weights are held; auto is as the folder saved them"
    )
    chat_format: Literal["auto", "llama2", "none"] = Field(
        default="auto",
        description="how conversations become prompts; auto is by the folder's template, and without one not at all",
    )
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto is the first GPU, without one the CPU"
    )
    gpu_share: float = Field(
        default=1.0, gt=0, le=1, description="of the GPU's memory, what this worker may fill, where several share one"
    )
    threads: int = Field(default=0, ge=0, le=1024, description="CPU threads of torch; 0 leaves it to torch")

    max_sequences: int = Field(
        default=16, ge=1, le=1024, description="choices held at the same time; a generation may have several"
    )
    max_step_tokens: int = Field(default=2048, ge=1, description="tokens in one step, prefill and decode together")
    prefill_chunk: int = Field(default=512, ge=1, description="prompt tokens of one sequence in one step")
    prefill_activations: Literal["float", "int8"] = Field(
        default="float",
        description="what prompts of over 128 tokens multiply weights with; int8 is for the int8 tensor cores, less "
        "exact, and refused without int8 weights or the Hopper kernels",
    )
    deterministic: bool = Field(
        default=False,
        description="a generation's tokens depend on nothing else that runs, nor on a change of worker; slower, and on "
        "the engine's own GPU kernels at most 128 max_sequences",
    )
    kv_cache_bytes: int = Field(
        default=0, ge=0, description="size of the KV cache; 0 takes the free GPU memory, on the CPU 256 MiB"
    )
    kv_cache_format: Literal["float", "int8"] = Field(
        default="float",
        description="float is float16 on a GPU, float32 on the CPU; int8 holds nearly twice as many tokens as float16, "
        "less exactly; the same at every worker of a model",
    )

    dead_after_ms: int = Field(
        default=900, ge=300, description="another worker's heartbeat that stands still this long is a death"
    )
    stuck_after_s: float = Field(
        default=10.0, gt=0, description="an engine with work and no step for this long is killed and restarted"
    )
    drain_timeout_s: float = Field(
        default=30.0, ge=0, description="how long a stopping worker finishes what it holds before it hands it back"
    )
    max_unpublished_tokens: int = Field(
        default=256, ge=1, description="tokens of one generation not yet in its log; then it is held"
    )
    metrics_host: str = Field(
        default="127.0.0.1", min_length=1, description="address where Prometheus may ask for /metrics; never TLS"
    )
    metrics_port: int = Field(default=0, ge=0, le=65535, description="its port; 0 opens none")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level that is logged"
    )
    max_restarts: int = Field(
        default=8, ge=0, description="restarts of the engine process within the window; after that the worker gives up"
    )
    restart_window_s: float = Field(default=120.0, gt=0, description="the window of max_restarts")

    @model_validator(mode="after")
    def _every_sequence_has_a_token(self) -> "WorkerSettings":
        if self.max_step_tokens < self.max_sequences:
            raise ValueError(
                f"max_step_tokens is {self.max_step_tokens}; each of max_sequences {self.max_sequences} needs one"
            )
        return self

    @property
    def served_name(self) -> str:
        """The model's name in the API."""
        return self.model_name or self.model_path.resolve().name


def read_settings() -> WorkerSettings:
    """The settings of this process' environment. Raises pydantic's ValidationError, naming each wrong field."""
    return WorkerSettings()  # type: ignore[call-arg]  # the required fields come from the environment
