"""Functions and files of the product stay short."""

import ast
import pathlib

import pytest

#: Lines, docstrings included.
FUNCTION, FILE = 50, 400

ROOT = pathlib.Path(__file__).resolve().parent.parent
PRODUCT = sorted([*ROOT.glob('*.py'), *(ROOT / 'trainer').rglob('*.py')])


def too_long(source):
    """Return descriptions of what is too long in a module."""
    found = []
    lines = len(source.splitlines())
    if lines > FILE:
        found.append(f'{lines} lines')
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION:
                found.append(f'{node.name}: {lines} lines')
    return found


@pytest.mark.parametrize('path', PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_product(path):
    assert not too_long(path.read_text(encoding='utf-8'))


def test_product_is_found():
    names = {str(path.relative_to(ROOT)) for path in PRODUCT}
    assert {'main.py', 'trainer/cli.py', 'trainer/engines/cudnn/graphs.py'} <= names


@pytest.mark.parametrize('kind', ['def', 'async def'])
def test_a_long_function_is_found_and_a_short_one_is_not(kind):
    """Methods and docstrings count."""

    def of(lines):
        return f'class A:\n    {kind} f():\n        """\n' + '\n' * (lines - 3) + '        """\n'

    assert too_long(of(FUNCTION)) == []
    assert too_long(of(FUNCTION + 1)) == [f'f: {FUNCTION + 1} lines']


def test_a_long_file_is_found_and_a_short_one_is_not():
    assert too_long('x = 1\n' * FILE) == []
    assert too_long('x = 1\n' * (FILE + 1)) == [f'{FILE + 1} lines']
