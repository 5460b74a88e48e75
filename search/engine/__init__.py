"""The search loop, which knows proposers, evaluators and the trial store by their protocols."""
