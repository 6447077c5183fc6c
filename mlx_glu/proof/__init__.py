"""The proof of the kernels: cases, a float64 oracle, one tolerance, one run a case."""
