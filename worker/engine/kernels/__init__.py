"""The engine's own GPU kernels: products with quantized weights, paged decode attention, and the small ones.

`triton_product.py` and `triton_attention.py` are Triton's, for any GPU from Ampere on. The rest is CUDA, for Hopper.

The kernels for Hopper are queued on torch's current stream, allocate nothing, wait for nothing on the host, and can be
captured in a CUDA graph. Every one takes part in programmatic dependent launch: with `overlap=True` it may begin its
set-up (weights into shared memory above all) while the kernel right before it still runs. Each kernel lets the next one
start only after it has itself waited, so what is read early must not be the work of the kernel right before, and may be
anything older.
"""
