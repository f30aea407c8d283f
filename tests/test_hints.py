"""Type hints: what is public has them. That they are right is for mypy to say."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]

# An entry of a docstring's Args or Attributes that names a type.
_TYPED = re.compile(
    r' +[*\w, ]+ \((int|str|bool|float|dict|list|tuple|callable|type)( of \w+| or \w+)*\):'
)


def _modules():
    for path in sorted([*ROOT.glob('*.py'), *ROOT.glob('trainer/**/*.py')]):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def _public(node, inside=False):
    """Yield (function or class attribute, whether it is in a class) of what is public."""
    for part in ast.iter_child_nodes(node):
        name = getattr(part, 'name', '')
        if name.startswith('_') and not name.startswith('__'):
            continue
        if isinstance(part, ast.ClassDef):
            yield part, inside
            yield from _public(part, True)
        elif isinstance(part, ast.FunctionDef):
            yield part, inside
        elif isinstance(part, (ast.If, ast.Try)):
            yield from _public(part, inside)
        elif inside and isinstance(part, ast.Assign):
            yield part, True


def _arguments(function, inside):
    static = any(getattr(d, 'id', '') == 'staticmethod' for d in function.decorator_list)
    named = function.args.posonlyargs + function.args.args
    named = named[1:] if inside and not static else named
    rest = [function.args.vararg, function.args.kwarg]
    return named + function.args.kwonlyargs + [a for a in rest if a is not None]


def test_public_functions_have_hints():
    lacking, functions = [], 0
    for module, tree in _modules():
        for node, inside in _public(tree):
            if not isinstance(node, ast.FunctionDef):
                continue
            functions += 1
            names = [a.arg for a in _arguments(node, inside) if a.annotation is None]
            if names or node.returns is None:
                lacking.append(f'{module}:{node.lineno} {node.name} {names or "what it returns"}')
    assert functions > 500
    assert lacking == []


def test_public_class_attributes_have_hints():
    lacking = [
        f'{module}:{node.lineno} {ast.unparse(node)}'
        for module, tree in _modules()
        for node, _ in _public(tree)
        if isinstance(node, ast.Assign) and not ast.unparse(node.targets[0]).startswith('_')
    ]
    assert lacking == []


def test_docstrings_do_not_repeat_types():
    repeated = []
    for module, tree in _modules():
        for node, _ in _public(tree):
            text = '' if isinstance(node, ast.Assign) else ast.get_docstring(node) or ''
            lines = [line for line in text.splitlines() if _TYPED.match(line)]
            repeated += [f'{module} {node.name}: {line.strip()}' for line in lines]
    assert repeated == []
