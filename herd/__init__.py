"""The command line: `herd up`, `generate`, `quantize`, `gateway`, `worker`."""
