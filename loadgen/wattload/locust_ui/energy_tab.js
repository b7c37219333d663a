// Live charts in Locust's Energy tab. Locust's page is a React application whose elements we do not touch: this puts
// one element of its own before the tab's table, again whenever the page has been drawn anew.
(() => {
  "use strict";
  const CHARTS = [
    { key: "watts", title: "Power", unit: "W" },
    { key: "joules_per_request", title: "Attributed energy per request, recent", unit: "J" },
    { key: "joules_per_output_token", title: "Attributed energy per output token, recent", unit: "J" },
  ];
  const NS = "http://www.w3.org/2000/svg";
  const W = 560, H = 200, L = 56, R = 12, T = 28, B = 24;

  const panel = document.createElement("section");
  panel.id = "wattload-energy";
  panel.setAttribute("aria-label", "Energy charts");
  panel.style.cssText =
    "display:none;flex-wrap:wrap;gap:16px;padding:16px 24px;font:13px system-ui,sans-serif;justify-content:center";

  // Above the tab's table where there is one, else at the end of the page.
  function place() {
    const head = [...document.querySelectorAll("#root th, #root td")].find((cell) => cell.textContent === "Quantity");
    const table = head?.closest("table");
    const box = table?.closest(".MuiPaper-root") ?? table;
    if (box?.parentElement) {
      if (panel.nextElementSibling !== box) box.parentElement.insertBefore(panel, box);
    } else if (!panel.isConnected) {
      document.body.appendChild(panel);
    }
  }

  const element = (name, attributes, text) => {
    const node = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const nice = (value) => {
    if (!(value > 0)) return 1;
    const power = 10 ** Math.floor(Math.log10(value));
    return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value);
  };
  const short = (value) => Number(value.toPrecision(3)).toLocaleString("en");
  const frame = (title) => {
    const svg = element("svg", { width: W, height: H, role: "img", "aria-label": title });
    svg.appendChild(element("rect", { width: W, height: H, rx: 6, fill: "currentColor", "fill-opacity": 0.04 }));
    svg.appendChild(element("text", { x: 12, y: 18, fill: "currentColor", "font-weight": 600 }, title));
    return svg;
  };

  function chart(spec, points, modelled) {
    const last = [...points].reverse().find((p) => p[spec.key] != null);
    const now = last ? `: ${short(last[spec.key])} ${spec.unit}` : ": not known yet";
    const svg = frame(spec.title + now + (modelled ? " (simulated)" : ""));
    const known = points.filter((p) => p[spec.key] != null);
    if (known.length < 2) return svg;
    const begin = points[0].unix_seconds, end = points[points.length - 1].unix_seconds;
    const top = nice(Math.max(...known.map((p) => p[spec.key])));
    const x = (t) => L + ((t - begin) / Math.max(end - begin, 1)) * (W - L - R);
    const y = (v) => H - B - (v / top) * (H - T - B);
    for (const share of [0, 0.5, 1]) {
      const at = y(top * share);
      svg.appendChild(element("line", { x1: L, x2: W - R, y1: at, y2: at, stroke: "currentColor", "stroke-opacity": 0.15 }));
      svg.appendChild(
        element("text", { x: L - 6, y: at + 4, "text-anchor": "end", fill: "currentColor" }, short(top * share)));
    }
    let path = "", open = false;
    for (const p of points) {
      if (p[spec.key] == null) { open = false; continue; }
      path += `${open ? "L" : "M"}${x(p.unix_seconds).toFixed(1)},${y(p[spec.key]).toFixed(1)}`;
      open = true;
    }
    svg.appendChild(element("path", { d: path, fill: "none", stroke: "currentColor", "stroke-width": 1.8 }));
    svg.appendChild(element("text", { x: L, y: H - 6, fill: "currentColor" }, "0 s"));
    svg.appendChild(
      element("text", { x: W - R, y: H - 6, "text-anchor": "end", fill: "currentColor" }, `${Math.round(end - begin)} s`));
    return svg;
  }

  // `colours` are those of the components, in their order, as the report and the dashboards have them.
  function splitBar(split, colours, modelled) {
    const known = Object.entries(colours).map(([name, colour]) => [`${name}_joules`, name, colour])
      .filter(([key]) => split[key] != null && split[key] > 0);
    const total = known.reduce((sum, [key]) => sum + split[key], 0);
    const svg = frame("Energy by component since the start" + (total ? `: ${short(total)} J` : "") + (modelled ? " (simulated)" : ""));
    let left = 12, row = 0;
    for (const [key, name, colour] of known) {
      const width = (split[key] / total) * (W - 24);
      svg.appendChild(element("rect", { x: left, y: 40, width, height: 34, fill: colour }));
      left += width;
      const at = 96 + row++ * 22;
      svg.appendChild(element("rect", { x: 14, y: at - 10, width: 12, height: 12, fill: colour }));
      const text = `${name}: ${short(split[key])} J, ${((100 * split[key]) / total).toFixed(1)} %`;
      svg.appendChild(element("text", { x: 34, y: at, fill: "currentColor" }, text));
    }
    return svg;
  }

  async function refresh() {
    const open = new URLSearchParams(location.search).get("tab") === "energy";
    panel.style.display = open ? "flex" : "none";
    if (!open) return;
    place();
    const dark = document.querySelector(".dark, [data-theme=dark]") !== null ||
      getComputedStyle(document.body).backgroundColor.match(/\d+/g)?.slice(0, 3).every((c) => Number(c) < 90);
    panel.style.color = dark ? "#e5e7eb" : "#1f2937";
    const answer = await fetch("./wattload/energy.json");
    if (!answer.ok) return;
    const data = await answer.json();
    const modelled = data.source === "modelled";
    panel.replaceChildren(
      ...CHARTS.map((spec) => chart(spec, data.points, modelled)), splitBar(data.split, data.colours, modelled));
  }
  const tick = () => refresh().catch(() => {}).finally(() => setTimeout(tick, 1000));
  tick();
})();
