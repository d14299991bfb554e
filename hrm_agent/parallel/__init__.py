"""Threads, devices, processes and CUDA graphs."""
