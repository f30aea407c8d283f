"""argparse with a short help, one style of flags, and all errors reported at once."""

import argparse
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from trainer.text import printable

#: Columns of the help, at most.
WIDTH = 80


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser that reports all errors at once, one line each, without the usage.

    Flags of several words are written with dashes. The 2017 program's underscores and short flags
    of several letters are accepted as well, but not shown in the help. ``--help`` shows the common
    flags and the examples, ``--help-all`` all flags.

    Args:
        examples: Commands, one per line.
        rare: Destinations of the flags that ``--help`` leaves out.
        kwargs: Arguments of :class:`argparse.ArgumentParser`.
    """

    def __init__(self, examples: str = '', rare: Iterable[str] = (), **kwargs: Any) -> None:
        kwargs.setdefault('formatter_class', _Formatter)
        kwargs.setdefault('usage', '%(prog)s [flags]')
        super().__init__(allow_abbrev=False, add_help=False, **kwargs)
        self.rare = tuple(rare)
        self.examples = examples and _Formatter.AS_IT_IS + 'examples:\n' + examples.strip('\n')
        self._faults: list[str] = []
        self.add_argument(
            '-h', '--help', action='help', default=argparse.SUPPRESS, help='show this help'
        )
        self.add_argument(
            '--help-all', action=_HelpAll, default=argparse.SUPPRESS, help='show all flags'
        )

    def _unify(self):
        """Accept every flag with dashes, and show it with dashes."""
        for action in self._actions:
            flags = []
            for flag in action.option_strings:
                dashed = flag.replace('_', '-') if flag.startswith('--') else flag
                self._option_string_actions[dashed] = action
                flags.append(dashed)
            action.option_strings = list(dict.fromkeys(flags))

    def parse_known_args(  # type: ignore[override]  # of two overloads the usual one
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        self._unify()
        return super().parse_known_args(args, namespace)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self._faults.append(f'unrecognized arguments: {" ".join(unknown)}')
        if self._faults:
            self.error(self._faults.pop())
        return parsed

    def _get_values(self, action, arg_strings):
        try:
            return super()._get_values(action, arg_strings)
        except argparse.ArgumentError as e:
            self._faults.append(str(e))
            return None

    def error(self, message: str) -> NoReturn:
        *others, last = self._faults + [message]
        lines = [printable(line) for line in others]
        lines.append(printable(f'{last} ({self.prog} --help lists the flags)'))
        self.exit(2, ''.join(f'{self.prog}: error: {line}\n' for line in lines))

    def format_help(self, everything: bool = False) -> str:
        """Return the help of the common flags, with examples, or of ``everything``."""
        self._unify()
        if everything:
            return super().format_help()
        formatter = self._get_formatter()
        if isinstance(formatter, _Formatter):
            formatter.short = bool(self.rare)
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(self.description)
        formatter.start_section('flags')
        formatter.add_arguments(
            action
            for action in sorted(self._actions, key=lambda action: bool(action.option_strings))
            if action.dest not in self.rare and (self.rare or not isinstance(action, _HelpAll))
        )
        formatter.end_section()
        formatter.add_text(self.examples)
        return formatter.format_help()


class _HelpAll(argparse.Action):
    def __init__(self, option_strings, dest, **kwargs):
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        print(parser.format_help(everything=True), end='')
        parser.exit()


class _Formatter(argparse.HelpFormatter):
    """``-e, --epoch N`` and its help, in 80 columns; a text that begins so as it is."""

    AS_IT_IS = '\v'

    #: Whether to show only the first clause of each help text.
    short = False

    def __init__(self, prog, **kwargs):
        import shutil  # formatting it takes as long as everything else here

        width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
        super().__init__(prog, max_help_position=26, width=width)

    def _fill_text(self, text, width, indent):
        if text.startswith(self.AS_IT_IS):
            return text.removeprefix(self.AS_IT_IS)
        return super()._fill_text(text, width, indent)

    def _get_help_string(self, action):
        text, default = _DEFAULT.fullmatch(action.help).groups()
        first, semicolon, rest = text.partition(';')
        unlisted = self._metavar(action) == 'NAME' and action.choices is not None
        if unlisted and not all(name in text for name in action.choices):
            first += f': {", ".join(map(str, action.choices))}'
        return first + ('' if self.short else semicolon + rest) + (default or '')

    def _format_action_invocation(self, action):
        if not action.option_strings:
            return self._metavar(action)
        short = [flag for flag in action.option_strings if len(flag) == 2]
        long = [flag for flag in action.option_strings if flag.startswith('--')]
        return f'{", ".join(short[:1] + long[:1])} {self._format_args(action, None)}'.rstrip()

    def _format_args(self, action, default_metavar):
        forms = {0: '', '?': '[{}]', '+': '{} ...', '*': '[{} ...]'}
        value = self._metavar(action)
        value = ' '.join(value) if isinstance(value, tuple) else value
        return forms.get(action.nargs, '{}').format(value)

    @staticmethod
    def _metavar(action):
        """Return the placeholder of a value: its choices if they are short, else a word."""
        if action.metavar is not None or not action.option_strings:
            return action.metavar or action.dest
        if action.choices is not None:
            listed = '{' + ','.join(map(str, action.choices)) + '}'
            return listed if len(listed) < 18 else 'NAME'
        return 'N'


# The help of a flag, and its default.
_DEFAULT = re.compile(r'(.*?)( \(default: .*\))?', re.DOTALL)
