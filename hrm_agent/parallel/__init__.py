"""Threads, devices, processes and graphs: who computes."""
