"""The report's look: a style sheet, and a script that shows the value under the pointer; nothing fetched."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #16202e; --soft: #5a6778; --faint: #8b96a5; --rule: #e3e7ed;
  --hover: #f1f4f8; --good: #0b7a4b; --bad: #b42318; --warn: #fff7e6; --warn-rule: #f0c36d; --code: #eef1f5;
  --c0: #64748b; --c1: #2563eb; --c2: #d9660a; --c3: #0c8f7c; --c4: #8b3fd9; --c5: #d0286f; --c6: #5a8a0a;
  --c7: #0a86a8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0e131a; --card: #161d27; --ink: #e6ebf2; --soft: #a3afbf; --faint: #748194; --rule: #29323f;
    --hover: #1c2531; --good: #4ade94; --bad: #ff8a7a; --warn: #2a2313; --warn-rule: #7a5c1e; --code:
    #202a36;
    --c0: #9aa8ba; --c1: #6ea2ff; --c2: #f79a3e; --c3: #35cdb5; --c4: #c08cff; --c5: #ff7fb0; --c6:
    #a5d64c; --c7: #4fc6e8;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.6rem; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
}
.wrap { max-width: 1240px; margin: 0 auto; padding: 0 24px; }
header.top { padding: 40px 0 18px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 6px; font-weight: 680; }
h2 { font-size: 20px; letter-spacing: -.01em; margin: 0 0 4px; font-weight: 650; }
h3 { font-size: 15px; margin: 22px 0 8px; font-weight: 640; }
.charts + p { margin-top: 12px; }
h4 { font-size: 12px; margin: 20px 0 8px; font-weight: 600; color: var(--soft); letter-spacing: .02em; }
p { margin: 0 0 10px; max-width: 78ch; }
.warning {
  margin-left: 12px; background: var(--warn); border: 1px solid var(--warn-rule); border-radius: 6px;
  padding: 1px 9px; font-size: 13px; text-decoration: none; color: var(--ink);
}
.sub, .note { color: var(--soft); }
.note { font-size: 13.5px; }
a { color: inherit; }
nav { position: sticky; top: 0; z-index: 5; background: var(--page); border-bottom: 1px solid var(--rule); }
nav .wrap {
  display: flex; gap: 4px; overflow-x: auto; scrollbar-width: none; padding-top: 6px; padding-bottom:
  6px;
}
nav a {
  text-decoration: none; color: var(--soft); padding: 5px 11px; border-radius: 7px; white-space: nowrap;
  font-size: 14px;
}
nav a:hover { background: var(--hover); color: var(--ink); }
nav a:first-child { margin-left: -11px; }
section {
  background: var(--card); border: 1px solid var(--rule); border-radius: 14px; padding: 22px 24px;
  margin: 18px 0;
}
.scroll { overflow-x: auto; }
.lineage svg { display: block; margin: 14px 0 2px; }
svg text { font-family: inherit; fill: var(--soft); font-size: 11.5px; }
svg.chart text { font-size: 11px; font-variant-numeric: tabular-nums; }
svg .title { fill: var(--ink); font-size: 14px; font-weight: 640; }
svg .box { fill: var(--card); stroke: var(--rule); stroke-width: 1.4; }
svg .dashed { stroke-dasharray: 4 4; stroke: var(--faint); }
svg .edge { fill: none; stroke: var(--faint); stroke-width: 1.4; opacity: .75; }
svg .head { fill: var(--faint); }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .axis { stroke: var(--faint); stroke-width: 1; }
svg .raw { stroke-width: 1; opacity: .28; stroke-linejoin: round; }
svg .mean { stroke-width: 1.9; stroke-linejoin: round; stroke-linecap: round; }
svg .ci { stroke-width: 2; opacity: .55; stroke-linecap: round; }
svg .dot { stroke: var(--card); stroke-width: 1.2; }
svg .zero { stroke: var(--faint); stroke-dasharray: 2 3; }
svg .cursor { stroke: var(--faint); stroke-width: 1; }
.charts { margin-top: 14px; display: grid; grid-template-columns: repeat(auto-fill, minmax(248px, 1fr)); gap: 18px 24px; }
figure { margin: 0; position: relative; min-width: 0; }
figcaption {
  display: flex; justify-content: space-between; gap: 10px; align-items: baseline; margin-bottom: 3px;
}
figcaption .name { font-weight: 600; font-size: 13.5px; overflow-wrap: anywhere; }
figcaption .unit { color: var(--faint); font-size: 12px; font-weight: 400; white-space: nowrap; }
figcaption .last {
  color: var(--soft); font-size: 12.5px; white-space: nowrap; font-variant-numeric: tabular-nums;
}
.chart { width: 100%; height: auto; display: block; }
.tip {
  position: absolute; pointer-events: none; z-index: 3; background: var(--ink); color: var(--card);
  font-size: 12px;
  padding: 3px 8px; border-radius: 6px; white-space: pre; line-height: 1.4; font-variant-numeric:
  tabular-nums;
}
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
tbody tr:last-child td { border-bottom: 0; }
table.results td { vertical-align: middle; }
table.results .num { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
table.results .group td {
  padding-top: 20px; color: var(--soft); font-size: 12px; font-weight: 600; letter-spacing: .02em;
}
table.results tbody tr:hover td { background: var(--hover); }
table.results tbody tr.group:hover td { background: none; }
.range { display: block; font-weight: 400; color: var(--faint); font-size: 11.5px; line-height: 1.3; }
.best { font-weight: 700; }
.better { color: var(--good); }
.worse { color: var(--bad); }
table.results td.metric { font-weight: 550; padding-right: 22px; }
table.results td.strip { padding-right: 0; width: 194px; }
td.strip svg { display: block; }
.metric small {
  display: block; color: var(--soft); font-weight: 400; font-size: 12.5px; line-height: 1.4; max-width:
  46ch;
}
.unit { color: var(--faint); font-weight: 400; font-size: 12.5px; }
.swatch { display: inline-block; width: 9px; height: 9px; border-radius: 2.5px; margin-right: 6px; }
.key { display: inline-flex; align-items: center; margin-right: 16px; font-size: 13px; color: var(--soft); }
.missing { color: var(--faint); }
.gaps { background: var(--warn); border-color: var(--warn-rule); }
.gaps ul { margin: 6px 0 0; padding-left: 20px; }
.gaps li { margin: 2px 0; overflow-wrap: anywhere; }
details { border-top: 1px solid var(--rule); margin-top: 16px; padding-top: 10px; }
details.plain { border: 0; padding: 0; }
summary { cursor: pointer; font-weight: 600; font-size: 14px; color: var(--soft); }
summary:hover { color: var(--ink); }
details[open] > summary { margin-bottom: 10px; }
table.config td, table.config th { padding: 3px 18px 3px 0; font-size: 13px; }
table.config td {
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; overflow-wrap:
  anywhere;
}
table.config td:first-child { color: var(--soft); }
table.config .differs td { background: var(--hover); color: var(--ink); }
.sample { border-top: 1px solid var(--rule); padding: 16px 0 14px; }
.sample:first-of-type { border-top: 0; }
.prompt { margin-bottom: 10px; }
.turn { display: flex; gap: 10px; margin: 2px 0; }
.role { color: var(--faint); font-size: 12px; flex: 0 0 62px; padding-top: 3px; text-align: right; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 0; }
.replies { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 12px; }
.reply {
  border: 1px solid var(--rule); border-top: 3px solid var(--faint); border-radius: 9px; padding: 9px
  12px 10px; min-width: 0;
}
.reply .who {
  font-size: 12.5px; font-weight: 640; display: flex; justify-content: space-between; gap: 8px;
}
.reply .who span { font-weight: 400; color: var(--soft); font-variant-numeric: tabular-nums; }
.reply .said { margin-top: 5px; font-size: 14px; }
.chip {
  display: inline-block; background: var(--code); color: var(--soft); border-radius: 5px; padding: 0
  7px; font-size: 12px; margin: 0 6px 4px 0;
}
footer { color: var(--faint); font-size: 13px; padding: 10px 0 50px; }
code {
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .9em;
  background: var(--code); padding: 1px 5px; border-radius: 4px; overflow-wrap: anywhere;
}
@media (max-width: 640px) {
  .charts { grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 14px 12px; }
.wrap { padding: 0 14px; }
section { padding: 16px 14px; }
h1 { font-size: 24px; }
.role { flex-basis: 48px; }
}
@media print {
  nav { display: none; } section { break-inside: avoid; border: 0; padding: 12px 0; }
}
"""

# The pointer's step and the curves' values there are read back from the drawn points: no data is sent twice.
SCRIPT = """
for (const svg of document.querySelectorAll("svg.chart")) {
  const [left, top, width, height, x0, x1, y0, y1] = svg.dataset.box.split(" ").map(Number);
  const lines = [...svg.querySelectorAll("polyline.mean")].map(line => ({
    name: line.dataset.name,
    points: line.getAttribute("points").split(" ").map(pair => pair.split(",").map(Number)),
  }));
  const figure = svg.closest("figure"), tip = document.createElement("div");
  const cursor = document.createElementNS(svg.namespaceURI, "line");
  tip.className = "tip"; tip.hidden = true; figure.append(tip);
  cursor.setAttribute("class", "cursor"); cursor.setAttribute("y1", top); cursor.setAttribute("y2", top +
  height);
  const leave = () => { tip.hidden = true; cursor.remove(); };
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale;
    if (x < left - 6 || x > left + width + 6) return leave();
    let at = x;
    const rows = lines.filter(line => x >= line.points[0][0] - 6 && x <= line.points.at(-1)[0] +
    6).map(line => {
      const near = line.points.reduce((a, b) => Math.abs(a[0] - x) <= Math.abs(b[0] - x) ? a : b);
      at = near[0];
      const value = y0 + (1 - (near[1] - top) / height) * (y1 - y0);
      return (line.name ? line.name + "  " : "") + Number(value.toPrecision(3));
    });
    if (!rows.length) return leave();
    const step = Math.round(x0 + (at - left) / width * (x1 - x0));
    tip.textContent = "step " + step.toLocaleString("en") + "\\n" + rows.join("\\n");
    tip.hidden = false;
    cursor.setAttribute("x1", at); cursor.setAttribute("x2", at); svg.append(cursor);
    const room = figure.clientWidth - tip.offsetWidth;
    tip.style.left = Math.max(0, Math.min(at / scale + 10, room)) + "px";
    tip.style.top = (event.clientY - figure.getBoundingClientRect().top - tip.offsetHeight - 12) + "px";
  });
}
"""
