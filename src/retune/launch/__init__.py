"""Starting a study: its steps in a process on this machine, or the compiled pipeline on a Kubeflow cluster."""
