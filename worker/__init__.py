"""The worker process: claims jobs, runs the engine, publishes tokens. Never imports grpc or service."""
