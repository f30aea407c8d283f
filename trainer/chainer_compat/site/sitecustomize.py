"""What each Python process under ``python -m trainer.chainer_compat`` does first."""

import importlib
import pathlib
import sys

_root = str(pathlib.Path(__file__).resolve().parents[3])
sys.path.insert(0, _root)
try:
    from trainer.chainer_compat import removed_names

    importlib.import_module('chainer')  # before NumPy answers with names that it has not
finally:
    sys.path.remove(_root)  # the program finds no module of ours but trainer

removed_names.install()
