"""KFP pipelines and their compiled YAML.

`python -m retune.pipelines` compiles them anew; the YAML files are what `retune run` runs here and what a cluster runs.
"""
