"""Language-aided Bayesian optimisation (Baek et al. 2026): settings written out as text, embedded by a frozen model.

A package of its own, because `retune.search` must not depend on torch: `retune.search.find` loads `ALGORITHM` by its path
when a study names `language-bo`. torch and transformers are imported when settings are suggested.
"""

from __future__ import annotations

from retune.language.algorithm import LanguageSettings, propose
from retune.search import Algorithm

ALGORITHM = Algorithm(
    LanguageSettings, propose, "Bayesian optimisation over a language model's embedding of the settings"
)
__all__ = ["ALGORITHM", "LanguageSettings", "propose"]
