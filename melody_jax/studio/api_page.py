"""/api/docs: the routes of the API as one HTML page without scripts and without anything from other addresses."""

import base64
import hashlib
import html
import json
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from melody_jax.studio import security

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1f;
  background: #fff; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9em; }
section { border-top: 1px solid #c9c9d1; padding: 0.5rem 0; }
h2 { font-size: 1.05rem; margin: 0.5rem 0; overflow-wrap: anywhere; }
.method { display: inline-block; min-width: 4.5rem; font-weight: 700; color: #0b5394; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: 0.2rem 0.6rem 0.2rem 0; border-top: 1px solid #e6e6ec; }
td:last-child { overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { color: #e8e8ee; background: #16161a; } .method { color: #8ab8ff; } }
"""
STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"{security.NOTHING}; style-src 'sha256-{STYLE_HASH}'"
INTRODUCTION = """
<p>Errors are <code>{"error": "one line"}</code>. 429 and 503 have <code>Retry-After</code>, in seconds. Bodies are JSON
(<code>Content-Type: application/json</code>) unless stated. The description for programs is
<a href="openapi.json">openapi.json</a>. Besides, there are <code>/healthz</code> and <code>/metrics</code>.</p>
"""


def docs_response(app: FastAPI) -> HTMLResponse:
    """The page of an application's routes."""
    schema = app.openapi()
    sections = "".join(
        _operation(method, f"{schema['servers'][0]['url']}{path}", operation)
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    )
    title = html.escape(f"{schema['info']['title']} {schema['info']['version']}")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><main><h1>{title}</h1>{INTRODUCTION}{sections}</main></body></html>"
    )
    return HTMLResponse(page, headers={"content-security-policy": POLICY})


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    """One route: its description, its parameters and its body."""
    rows = [
        (parameter["name"], parameter["in"], _words(parameter["schema"], parameter.get("description", "")))
        for parameter in operation.get("parameters", ())
    ]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        properties = content["schema"].get("properties", {})
        rows += [
            (name, kind, _words(schema, schema.get("description", ""))) for name, schema in properties.items()
        ]
        rows += [] if properties else [("", kind, "the body")]
    cells = "".join(
        f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(place)}</td><td>{html.escape(text)}</td></tr>"
        for name, place, text in rows
    )
    table = f"<table><tr><th>name</th><th>in</th><th>value</th></tr>{cells}</table>" if cells else ""
    statuses = ", ".join(status for status in operation["responses"] if status != "422")
    text = html.escape(" ".join(operation.get("description", "").split()))
    return (
        f'<section><h2><span class="method">{method.upper()}</span> <code>{html.escape(path)}</code></h2>'
        f"<p>{text} Answers {statuses}.</p>{table}</section>"
    )


def _words(schema: dict[str, Any], description: str) -> str:
    """A schema in words: type, range, default and description."""
    kinds = schema.get("anyOf") or schema.get("oneOf") or [schema]
    words = [
        " or ".join(dict.fromkeys(kind.get("type", "object") for kind in kinds if kind.get("type") != "null"))
    ]
    names = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "enum": "one of"}
    words += [f"{text} {_value(schema[name])}" for name, text in names.items() if name in schema]
    words += [f"default {_value(schema['default'])}"] if schema.get("default") not in (None, "") else []
    return ", ".join(words) + (f". {description}" if description else "")


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else json.dumps(value)
