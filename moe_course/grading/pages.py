"""The look of the report's pages: one style sheet, light and dark, and small pieces of HTML. No scripts, no network."""

import html

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --page: #ffffff; --panel: #f6f8fa; --line: #d1d9e0;
  --good: #1a7f5a; --bad: #b3364b; --wait: #6e7781; --accent: #0b6bb8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af; --page: #0d1117; --panel: #161b22;
  --line: #30363d; --good: #4cc38a; --bad: #ff8095; --wait: #9aa4af; --accent: #6cb6ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1.05rem; margin: 1.2rem 0 .3rem; } .card h3 { margin: 0; }
p { margin: .4rem 0; } a { color: var(--accent); }
.soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); } .wait { color: var(--wait); }
.total { font-size: 1.25rem; font-weight: 600; margin: .3rem 0 1rem; }
.warn { border: 1px solid var(--bad); border-left-width: 6px; border-radius: 6px; padding: .7rem 1rem; margin: 1rem 0; }
.card { border: 1px solid var(--line); border-left: 6px solid var(--wait); border-radius: 6px; margin: 1rem 0;
  padding: .8rem 1.1rem; background: var(--panel); overflow-wrap: anywhere; }
.card .wide { margin-top: .5rem; }
.card.good { border-left-color: var(--good); color: inherit; }
.card.bad { border-left-color: var(--bad); color: inherit; }
.head { display: flex; gap: 1rem; justify-content: space-between; align-items: baseline; flex-wrap: wrap; }
.says { border-left: 3px solid var(--bad); padding: .1rem 0 .1rem .8rem; margin: .7rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .94rem; } .wide { overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; } td.number, th.number { text-align: right; white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
code, pre { font: .9em ui-monospace, monospace; } pre { overflow-x: auto; margin: .5rem 0; padding: .6rem .8rem;
  background: var(--page); border: 1px solid var(--line); border-radius: 6px; }
details { margin: .35rem 0; } summary { cursor: pointer; color: var(--accent); }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; } svg .bar { fill: var(--accent); }
svg .axis { stroke: var(--line); }
"""


def page(title: str, body: str) -> str:
    """A whole page; `body` is HTML."""
    return (
        f"<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Anything as text that HTML cannot mistake for its own."""
    return html.escape(str(value))


def marked(value: str) -> str:
    """Escaped, with `code` between backticks set as code."""
    parts = text(value).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))


def table(heads: list[str], rows: list[list[str]], numbers: tuple[int, ...] = ()) -> str:
    """A table; heads and cells are HTML; `numbers` are the columns set to the right."""

    def cells(tag: str, row: list[str]) -> str:
        return "".join(
            f"<{tag} class='number'>{cell}</{tag}>" if index in numbers else f"<{tag}>{cell}</{tag}>"
            for index, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<div class='wide'><table><tr>{cells('th', heads)}</tr>{body}</table></div>"


def details(summary: str, body: str) -> str:
    """Something folded away; both are HTML."""
    return f"<details><summary>{summary}</summary>{body}</details>"


def printable(text: str) -> str:
    """Text without control characters, which could play tricks with a terminal or a page."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
