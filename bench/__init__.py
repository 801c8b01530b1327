"""Benchmarks: one room per table of docs/benchmarks.md, this project and its peers in one run."""
