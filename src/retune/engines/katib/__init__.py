"""The engine `katib`: a study's trials as a Katib Experiment on a Kubernetes cluster."""
