"""How a report looks: by light and dark, on a laptop and on a phone."""

_LIGHT = """
--bg:#fdfdfc;--ink:#1c1d20;--muted:#5d606a;--line:#e2e3e7;--soft:#f3f4f6;
--accent:#2b5fc7;--second:#b8520b;--behind:#cfd2d9"""
CSS = (
  f':root{{{_LIGHT.strip()};color-scheme:light dark}}'
  + """
@media(prefers-color-scheme:dark){:root{--bg:#15161a;--ink:#e7e8eb;
--muted:#a0a4af;--line:#2d3037;--soft:#1e2026;--accent:#82abff;
--second:#f2a065;--behind:#41454f}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:20px 16px 60px}
h1{font-size:1.5rem;line-height:1.25;margin:.2em 0}
h2{font-size:1.12rem;margin:2.2em 0 .3em}
p{margin:.4em 0;max-width:72ch}
.quiet,figcaption,.spread{color:var(--muted)}
.quiet,figcaption{font-size:.87rem}
.lead{font-size:1.05rem}
.scroll{overflow-x:auto;margin:.8em 0;border:1px solid var(--line);
border-radius:8px}
table{border-collapse:collapse;font-size:.88rem;width:100%;
font-variant-numeric:tabular-nums}
th,td{padding:6px 10px;text-align:right;white-space:nowrap;
border-bottom:1px solid var(--line)}
tr:last-child td{border-bottom:0}
thead th{color:var(--muted);font-weight:500;vertical-align:bottom;
white-space:normal;min-width:4.5em}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;
background:var(--bg);z-index:1}
td.top{font-weight:650}
.chip{display:inline-block;min-width:1.5em;padding:0 .35em;border-radius:4px;
font-size:.78rem;text-align:center;border:1px solid var(--line)}
.chip.first{background:var(--accent);border-color:var(--accent);color:var(--bg)}
.chip.tied{border-color:var(--accent);color:var(--accent)}
.row-number{color:var(--muted);display:inline-block;min-width:1.7em}
.spread{font-size:.86em}
.charts,.small,.pairs{margin:.5em 0 .9em}
.charts{display:grid;gap:14px 26px;
grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr))}
.pairs,.beside{display:grid;gap:14px 34px;
grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr))}
.beside{align-items:start}
.beside .charts{grid-template-columns:1fr}
.small{display:grid;gap:10px 14px;
grid-template-columns:repeat(auto-fit,minmax(163px,1fr))}
.small figure{max-width:290px}
figure{margin:0;max-width:560px;min-width:0}
svg.chart{display:block;width:100%;height:auto;overflow:visible}
svg text{font:11px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
fill:var(--ink)}
svg .tick{fill:var(--muted);font-size:10px}
svg .label{fill:var(--muted)}
svg .panel{font-weight:550}
svg .number{font-size:10.5px}
.grid{stroke:var(--line)}.axis,.cut{stroke:var(--muted)}
.cut{stroke-dasharray:2 3;opacity:.7}
.front{fill:none;stroke:var(--accent);stroke-width:1.5;stroke-dasharray:5 3}
.point{fill:var(--bg);stroke:var(--muted);stroke-width:1.6}
.point.best{fill:var(--accent);stroke:var(--accent)}
.whisker{stroke:var(--muted);opacity:.6}
.leader{stroke:var(--muted);opacity:.5;fill:none}
.course{fill:none;stroke:var(--accent);stroke-width:1.6}
.course.pooled,.clients.pooled{stroke:var(--second)}
.course.unseen,.clients.unseen{stroke:var(--muted)}
.course.own{stroke:var(--accent)}.curve:hover .course{stroke-width:2.6}
.behind{fill:none;stroke:var(--behind)}
.clients{fill:none;stroke:var(--accent);stroke-width:4;stroke-linecap:round;
opacity:.55}
.half{fill:var(--accent);opacity:.16}
.mean{stroke:var(--second);stroke-width:2}
.hits circle{fill:transparent}.hits circle:hover{fill:var(--second)}
.cell:hover,.bubble:hover{stroke:var(--second);stroke-width:1.5}
.cell,.legend .shade{fill:var(--accent)}.bubble{fill:var(--accent);opacity:.8}
fieldset{border:1px solid var(--line);border-radius:8px;margin:.8em 0;
padding:.3em .8em;display:flex;flex-wrap:wrap;gap:.1em 1.2em;font-size:.87rem}
legend{color:var(--muted);padding:0 .3em}
label{white-space:nowrap}
details{border:1px solid var(--line);border-radius:8px;margin:.4em 0;
padding:.35em .8em}
summary{cursor:pointer}
.code{position:relative}
pre{background:var(--soft);padding:.7em .8em;border-radius:6px;margin:.5em 0;
white-space:pre-wrap;overflow-wrap:anywhere;
font:.82rem/1.45 ui-monospace,"Cascadia Mono",Menlo,Consolas,monospace}
button{font:inherit;font-size:.8rem;color:var(--ink);background:var(--bg);
border:1px solid var(--line);border-radius:5px;padding:.1em .7em;
cursor:pointer}
"""
  # On paper: light, all of it, nothing cut in two.
  + f'@media print{{:root{{{_LIGHT.strip()};--bg:#fff;color-scheme:light}}'
  + """
main{max-width:none;padding:0}
button,fieldset{display:none}
.scroll{overflow:visible;border:0}
figure,tr,h2{break-inside:avoid}
h2{break-after:avoid}
table{font-size:.72rem}
th,td{padding:3px 5px;white-space:normal}
th:first-child,td:first-child{position:static}
.pairs,.beside{grid-template-columns:1fr 1fr;gap:8px 18px}
.beside th,.beside td{padding:2px}
thead th{min-width:0}
details::details-content{content-visibility:visible;height:auto}
}
"""
)

# Where a browser has no clipboard for files, there is no button.
SCRIPT = """
if (navigator.clipboard) for (const box of document.querySelectorAll('.code')) {
  const button = document.createElement('button');
  button.textContent = 'copy';
  button.onclick = () => navigator.clipboard
    .writeText(box.querySelector('pre').textContent)
    .then(() => { button.textContent = 'copied'; });
  box.append(button);
}
"""
