"""Starting pipelines: here by kfp.local, or on a Kubeflow cluster; and the compiled YAML that both are given."""
