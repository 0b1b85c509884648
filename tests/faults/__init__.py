"""What goes wrong with machines, done to runs on purpose. ``python -m benchmarks.reliability`` does all of it."""
