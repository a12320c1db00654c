"""Templates that read plate, well, site and channel out of a file's path.

A template is the path as the microscope writes it, with fields in braces:

    {plate}/{well}_s{site}_w{channel}.tif

`*` stands for anything within one folder or file name, `**/` for any folders, `[...]` for a part
that may be absent, and `{channel:[0-9]+}` narrows a field by a regular expression. `{_}` is read
and not used. Upper and lower case are the same.
"""

from __future__ import annotations

import re

FIELDS = {
    "experimental_batch": "[^/]+?",
    "plate": "[^/]+?",
    "well": "(?:a[a-f]|[a-p])[0-9]{1,2}",
    "row": "a[a-f]|[a-p]|[0-9]{1,2}",
    "column": "[0-9]{1,2}",
    "site": "[0-9]+",
    "channel": "[^/]+?",
    "z": "[0-9]+",
    "time": "[0-9]+",
    "_": "[^/]+?",
}
"""Fields, and what each matches unless the template narrows it."""

_TOKENS = re.compile(
    r"\{(?P<field>\w*)(?::(?P<narrow>(?:[^{}]|\{[0-9,]+\})*))?\}"
    r"|(?P<folders>\*\*/)|(?P<wild>\*)|(?P<open>\[)|(?P<close>\])|(?P<text>[^{}*\[\]]+)"
)


def template_expression(template: str) -> str:
    """The RE2 expression of a template, with a named group for each of its fields.

    Raises:
        ValueError: if the template has an unknown or repeated field, no well, or stray braces.
    """
    parts, fields, depth, end = ["(?i)^"], [], 0, 0
    for token in _TOKENS.finditer(template):
        if token.start() != end:
            break
        end = token.end()
        if (field := token["field"]) is not None:
            fields.append(_known(field, template))
            expression = token["narrow"] or FIELDS[field]
            parts.append(f"(?:{expression})" if field == "_" else f"(?P<{field}>{expression})")
        elif token["folders"]:
            parts.append("(?:.*?/)??")
        elif token["wild"]:
            parts.append("[^/]*?")
        elif token["open"] or token["close"]:
            depth += 1 if token["open"] else -1
            parts.append("(?:" if token["open"] else ")?")
        else:
            parts.append(re.escape(token["text"]))
    named = [field for field in fields if field != "_"]
    if end != len(template) or depth:
        raise ValueError(
            f"The template {template!r} has a brace or bracket without its partner at {end + 1}; "
            "fields are written {well}, parts that may be absent [_s{site}]."
        )
    if repeated := sorted({field for field in named if named.count(field) > 1}):
        raise ValueError(f"The template {template!r} has {repeated} twice; give each field once.")
    if "well" not in named and not {"row", "column"} <= set(named):
        raise ValueError(
            f"The template {template!r} does not say where the well stands; add {{well}}, or "
            "{row} and {column}."
        )
    return "".join(parts) + "$"


def _known(field: str, template: str) -> str:
    if field not in FIELDS:
        raise ValueError(
            f"The template {template!r} has the unknown field {{{field}}}; known are "
            f"{list(FIELDS)}."
        )
    return field
