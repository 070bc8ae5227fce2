"""The engine `katib`: a study's trials as a Katib Experiment on a Kubernetes cluster."""

OURS = ("nomad", "mads-global", "gp", "lhs", "soo", "bamsoo", "retune-tpe", "retune-random")
"""`algorithmName` of our algorithms under Katib, where the words ``tpe`` and ``random`` mean Katib's own services."""
