"""A stand-in for a cluster with Katib 0.19."""
