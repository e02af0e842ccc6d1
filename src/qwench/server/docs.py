"""The page at ``/docs``: routes and the table of request fields. Self-contained: it loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fastapi.routing import APIRoute

from qwench import __version__
from qwench.server.tables import KINDS, body_name, rows

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
color-scheme: light dark }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .25rem .75rem .25rem 0;
vertical-align: top; border-bottom: 1px solid #8884 } pre { overflow-x: auto; padding: .75rem; background: #8882 }
"""


def page(model: str, routes: Sequence[APIRoute]) -> str:
    """The whole page for ``model`` and the application's ``routes``."""
    listed = "".join(
        f"<tr><td><code>{' '.join(sorted(route.methods or ()))} {escape(route.path)}</code></td>"
        f"<td>{escape(route.description)}</td></tr>"
        for route in routes
    )
    fields = "".join(_table(name, routes) for name in KINDS)
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Qwench {__version__}</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>
<h1>Qwench {__version__}</h1>
<p>An OpenAI-compatible server of <code>{escape(model)}</code>.
The schema is at <a href="/openapi.json">/openapi.json</a>.</p>
<pre>curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{{"model": "{escape(model)}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'</pre>
<h2>Routes</h2><table><tr><th>Route</th><th>What it does</th></tr>{listed}</table>
<h2>Request fields</h2>
<p>An ignored field is named in the <code>X-Qwench-Warnings</code> header; so is a field nobody knows. A refused field
is answered with status 400 and its name.</p>
{fields}
</body></html>"""


def _table(name: str, routes: Sequence[APIRoute]) -> str:
    """The fields of one type of request."""
    of = ", ".join(route.path for route in routes if body_name(route) == name)
    fields = "".join(
        f"<tr><td><code>{rule.name}</code></td><td>{rule.treatment.value}</td><td>{escape(rule.note)}</td></tr>"
        for rule in rows(name)
    )
    return f"<h3>{of}</h3><table><tr><th>Field</th><th>Treatment</th><th>Note</th></tr>{fields}</table>"
