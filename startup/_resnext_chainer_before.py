"""``import chainer`` before anything of this project: what it misses is supplied all the same.

Installed beside the project as a module of its own, which a ``.pth`` file imports when Python
starts. It imports nothing until somebody imports Chainer.
"""

import sys


class _Before:
    def find_spec(self, name, path=None, target=None):
        if name != 'chainer':
            return None
        import importlib.util
        import os

        sys.meta_path.remove(self)
        trainer = importlib.util.find_spec('trainer')  # a program may have one of its own
        folder = os.path.dirname((trainer and trainer.origin) or '')
        if not os.path.isfile(os.path.join(folder, 'chainer_compat', 'items.py')):
            return None
        importlib.import_module('trainer')
        return importlib.util.find_spec(name)


sys.meta_path.insert(0, _Before())
