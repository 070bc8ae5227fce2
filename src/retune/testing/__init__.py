"""What retune promises of its extension points, as tests that a package runs on its own: docs/extend.md.

Needs pytest and hypothesis (``pip install 'retune[testing]'``). Import each contract from its module: `algorithms`,
`tasks`, `formats`, `engines`.
"""
