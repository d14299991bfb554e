"""C++ kernels, compiled on the machine that runs them."""
