class PerformanceWarning(RuntimeWarning):
    """A slow way of doing something."""
