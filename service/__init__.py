"""The gateway process: RPCs in, jobs out, tokens back. Never imports torch, transformers or worker."""
