"""Benchmarks of the columns and of the speed, with their committed results in ``results/``."""
