"""Errors of memory."""

from cupy._device import OutOfMemoryError  # noqa: F401
