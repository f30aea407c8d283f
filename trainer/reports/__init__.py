"""Reports of runs, evaluations and predictions: logs, console output, figures."""
