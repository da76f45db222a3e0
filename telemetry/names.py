"""Every name of a span, an attribute or a metric that this project emits; nothing else spells one.

`rpc.*` and `gen_ai.*` follow the OpenTelemetry semantic conventions as of October 2026 (the latter are in development
there, so they stand in this one place); `llamaherd.*` is ours. Values are never prompts, texts or tokens.
"""

# Spans, in the order in which a request opens them.
SPAN_CLIENT = "generate"  # the caller's, here `herd generate`
SPAN_RPC = "llamaherd.v1.GenerationService/Generate"  # the gateway's; every other RPC is named by its method likewise
SPAN_QUEUE = "queue"  # from acceptance to the first worker, or from one worker's loss to the next
SPAN_ATTEMPT = "attempt"  # one worker's work on a generation
SPAN_PREFILL = "prefill"
SPAN_DECODE = "decode"

# Attributes of the RPC.
ATTR_RPC_SYSTEM = "rpc.system.name"
ATTR_RPC_METHOD = "rpc.method"
ATTR_RPC_STATUS = "rpc.response.status_code"
ATTR_ERROR_TYPE = "error.type"

# What was asked for.
ATTR_OPERATION = "gen_ai.operation.name"  # chat | text_completion
ATTR_PROVIDER = "gen_ai.provider.name"
ATTR_REQUEST_MODEL = "gen_ai.request.model"
ATTR_REQUEST_STREAM = "gen_ai.request.stream"
ATTR_REQUEST_TEMPERATURE = "gen_ai.request.temperature"
ATTR_REQUEST_TOP_P = "gen_ai.request.top_p"
ATTR_REQUEST_TOP_K = "gen_ai.request.top_k"
ATTR_REQUEST_SEED = "gen_ai.request.seed"
ATTR_REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"

# What came back.
ATTR_RESPONSE_ID = "gen_ai.response.id"
ATTR_RESPONSE_MODEL = "gen_ai.response.model"
ATTR_FINISH_REASONS = "gen_ai.response.finish_reasons"  # one per choice
ATTR_TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"  # seconds, from the RPC's start
ATTR_PROMPT_TOKENS = "gen_ai.usage.input_tokens"
ATTR_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"

# Ours.
ATTR_REQUEST_ID = "llamaherd.request.id"
ATTR_GENERATION_ID = "llamaherd.generation.id"
ATTR_PRIORITY = "llamaherd.priority"  # high | normal | low
ATTR_WORKER_ID = "llamaherd.worker.id"
ATTR_ATTEMPT = "llamaherd.attempt"  # counted from 1
ATTR_FINISH_REASON = "llamaherd.finish_reason"  # of one attempt

PROVIDER = "llamaherd"
OPERATION_CHAT = "chat"
OPERATION_TEXT = "text_completion"
