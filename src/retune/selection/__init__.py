"""Choosing one of the scored trials: ranking, Pareto sets, rules, significance tests. Pure functions of records."""
