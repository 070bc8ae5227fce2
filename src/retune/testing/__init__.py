"""Contract tests for retune's extension points, for packages to run on their own classes: docs/extend.md.

Needs pytest and hypothesis (``pip install 'retune[testing]'``). Import each contract from its module: `algorithms`,
`tasks`, `formats`, `engines`.
"""
