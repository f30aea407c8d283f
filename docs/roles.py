"""Cross-references of docstrings (:func:`name`) as links of the documentation site."""

import contextlib
import re

import griffe

_ROLE = re.compile(r':(?:attr|class|data|func|meth|mod):`~?([^`<]+?)(?: <([^`>]+)>)?`')


class Roles(griffe.Extension):
    """Replace each role by a link, where the site shows its target; else by its name."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""

        def link(match):
            title, target = match[1], match[2] or match[1]
            with contextlib.suppress(griffe.NameResolutionError):  # a full path already
                target = obj.resolve(target)
            return f'<autoref identifier="{target}" optional><code>{title}</code></autoref>'

        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(link, obj.docstring.value)
