"""Kernels for processors with AVX512-bf16, or AVX2 and FMA: compiled on first use, never required."""
