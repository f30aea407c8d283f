"""Optional packages, which only parts of the program need."""

import contextlib
import importlib
import sys
from types import ModuleType

from trainer.errors import InputError

# OpenVINO and nncf import it and report every import and use to Google Analytics, unless that
# is disabled. They work without it.
_TELEMETRY = 'openvino_telemetry'


@contextlib.contextmanager
def _without_telemetry():
    held = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
        if held is not None:
            sys.modules[_TELEMETRY] = held


def need(package: str, purpose: str, extra: str | None = None) -> ModuleType:
    """Import a package that may be missing; OpenVINO and nncf without their telemetry.

    Args:
        package: Its name.
        purpose: What needs it, for the message.
        extra: The extra of pyproject.toml that installs it; by default the one of its name.

    Returns:
        The package.

    Raises:
        trainer.errors.InputError: It is not installed, or cannot be imported.
    """
    try:
        with _without_telemetry():
            return importlib.import_module(package)
    except ImportError as e:
        raise InputError(
            f'{purpose} needs the package {package} ({e}); install it with "uv sync --inexact '
            f'--extra {extra or package}" or "pip install {package}"'
        ) from e
