"""The engine `katib`: a study's trials as a Katib Experiment on a Kubernetes cluster."""

OURS = ("nomad", "mads-global", "gp", "lhs", "soo", "bamsoo", "retune-tpe", "retune-random")
"""`algorithmName` of retune's algorithms in Katib, where ``tpe`` and ``random`` are the names of Katib's own services."""
