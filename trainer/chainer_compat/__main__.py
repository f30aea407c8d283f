"""``python -m trainer.chainer_compat script.py ARG...``: run any program for Chainer 7.8.1."""

import os
import pathlib
import subprocess
import sys

USAGE = """usage: python -m trainer.chainer_compat SCRIPT.py [ARG ...]
       python -m trainer.chainer_compat -m MODULE [ARG ...]

Run a program for Chainer 7.8.1, unchanged: with what Chainer lacks today supplied, and
with the names that NumPy has removed since 1.20. Each such name that the program uses is
reported once. Processes that it starts run in the same way."""


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ('-h', '--help'):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    # Python runs the sitecustomize.py of this folder before the program.
    site = str(pathlib.Path(__file__).with_name('site'))
    path = os.pathsep.join(filter(None, [site, os.environ.get('PYTHONPATH')]))
    environment = os.environ | {'PYTHONPATH': path}
    command = [sys.executable, *arguments]
    if os.name == 'nt':  # on Windows, exec would return to the shell at once
        return subprocess.run(command, env=environment).returncode
    os.execve(sys.executable, command, environment)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
