"""Benchmarks by the Instruct-Eval protocol, and a sandbox for the code they run."""
