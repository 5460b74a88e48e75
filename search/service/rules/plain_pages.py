"""Pages for browsers that stand alone: the login page, and errors."""

from __future__ import annotations

from pathlib import Path

from starlette.datastructures import Headers

# The address of their style sheet, which is for everybody, and the style sheet.
STYLE_PATH = "/plain_pages.css"
STYLE = Path(__file__).with_suffix(".css")
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="stylesheet" href="{style}">
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
    return _PAGE.format(title=title, content=content, style=STYLE_PATH)


def is_opened(method: str, headers: Headers) -> bool:
    """True for a request of a browser that opens an address; scripts and programs do not ask for HTML."""
    return method == "GET" and "text/html" in headers.get("accept", "")
