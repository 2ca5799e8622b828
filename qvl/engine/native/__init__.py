"""Kernels for processors with AVX512-bf16: compiled on first use, never required."""
