"""The engine's own GPU kernels for Hopper: products with quantized weights, paged decode attention, and the small ones.

All are queued on torch's current stream, allocate nothing, wait for nothing on the host, and can be captured in a CUDA
graph. Every kernel takes part in programmatic dependent launch; `overlap=True` lets a kernel begin its set-up (weights
into shared memory above all) while the kernel before it still runs.
"""
