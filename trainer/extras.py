"""Packages that only some of the program needs: optional, and asked for by name."""

import importlib

from trainer.errors import InputError


def need(package, purpose, extra=None):
    """Import a package that may be missing.

    Args:
        package (str): Its name.
        purpose (str): What needs it, for the message.
        extra (str): The extra of pyproject.toml that brings it; by default of its name.

    Returns:
        module: The package.

    Raises:
        trainer.errors.InputError: It is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ImportError as e:
        raise InputError(
            f'{purpose} needs the package {package} ({e}); install it with "uv sync --inexact '
            f'--extra {extra or package}" or "pip install {package}"'
        ) from e
