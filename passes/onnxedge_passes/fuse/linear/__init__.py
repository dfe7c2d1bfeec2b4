"""Conv, ConvTranspose, Gemm, MatMul and Einsum, and what can be moved into their weights."""
