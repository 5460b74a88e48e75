"""Pages for browsers that stand alone: the login page, and errors."""

from __future__ import annotations

from starlette.datastructures import Headers

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
</head>
<body>
<main>
<h1>{title}</h1>
{content}
</main>
</body>
</html>
"""


def plain_page(title: str, content: str) -> str:
    """A page.

    Args:
        title: Title and heading, of a few words without markup.
        content: HTML below the heading.
    """
    return _PAGE.format(title=title, content=content)


def is_opened(method: str, headers: Headers) -> bool:
    """True for a request of a browser that opens an address; scripts and programs do not ask for HTML."""
    return method == "GET" and "text/html" in headers.get("accept", "")
