"""Measurements that docs quote: run as ``python -m benchmarks.NAME`` from the project's root."""
