"""The kernels for CUDA, in Triton; ``TRITON_INTERPRET=1`` runs them on CPU tensors for tests.

Numbers that change from batch to batch are arguments at run time that Triton does not specialise to, so that a run
compiles each kernel once or twice. Keys of dropout sites come as signed 32-bit patterns for the same reason.
"""
