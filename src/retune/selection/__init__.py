"""From scored trials to one choice: ranking, Pareto sets, rules, and tests against chance. Pure functions of records."""
