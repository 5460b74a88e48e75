"""Prompts on a page, their tokens shaded by how many blocks they run."""

from __future__ import annotations

from dash import html

from dashboards.app.parts import attributes
from dashboards.report.prompts import ShadedPrompt, ShadedToken, legend
from studies.records.records import ReportExamples


def legend_line(examples: ReportExamples) -> html.P:
    """What the shades mean."""
    return html.P(
        [html.Span("blocks run: "), *map(_token, legend(examples))],
        className="legend",
        **attributes(aria_hidden="true"),
    )


def article(prompt: ShadedPrompt, pruned: str) -> html.Article:
    """A prompt with the answers to it; `pruned` is what the model is called that skips."""
    answers = [
        *([("expected", prompt.expected, None)] if prompt.expected else []),
        ("dense", prompt.dense, prompt.dense_right),
        (pruned, prompt.pruned, prompt.pruned_right),
    ]
    rows = [
        part
        for model, text, right in answers
        for part in (html.Dt(model), html.Dd(text, className="wrong" if right is False else ""))
    ]
    tokens = html.P(list(map(_token, prompt.tokens)), className="tokens")
    said = html.P(prompt.said, className="soft")
    return html.Article([tokens, said, html.Dl(rows, className="answers")], className="prompt")


def _token(token: ShadedToken) -> html.Span:
    return html.Span(token.text, title=f"{token.blocks_run} blocks", style={"--ran": str(token.shade)})
