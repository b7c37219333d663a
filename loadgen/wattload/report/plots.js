// The plots of a page, drawn by uPlot from the data that stands beside each picture. What a reader sees without
// scripts and on paper is the picture. All text is set as text: no name of a run, a tenant or a model is markup.
(() => {
  "use strict";
  const PREFIXES = [[1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"]];
  const PREFIXED = new Set(["J", "W", "J/token"]);
  const together = []; // the charts over the time of the run
  const every = [];

  const element = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  let paper = {};
  const readPaper = () => {
    paper = Object.fromEntries(["ink", "soft", "grid", "shade", "paper"].map((name) => [name, style(name)]));
  };
  const colour = (name) => (name === "ink" ? paper.ink : name);

  function digits(value, significant = 4) {
    if (value === 0) return "0";
    if (Math.abs(value) < 1e-5) return value.toExponential(significant - 1);
    return Number(value.toPrecision(significant)).toLocaleString("en", { maximumSignificantDigits: significant });
  }
  function inUnit(value, axis) {
    if (value == null || !Number.isFinite(value)) return "none";
    if (axis.names.length) return axis.names[Math.round(value)] ?? "";
    // What rounding leaves of a sum is 0.
    if (PREFIXED.has(axis.unit) && Math.abs(value) < 1e-6) value = 0;
    const size = Math.abs(value), word = axis.simulated ? " simulated" : "";
    if (axis.unit === "s") {
      if (size >= 1 || size === 0) return `${digits(value)} s${word}`;
      return size < 1e-3 ? `${digits(value * 1e6)} µs` : `${digits(value * 1e3)} ms`;
    }
    if (PREFIXED.has(axis.unit) && size > 0) {
      const [factor, prefix] = PREFIXES.find(([f]) => size >= f * (f >= 1e3 ? 10 : 1)) ?? [1, ""];
      return `${digits(value / factor)} ${prefix}${axis.unit}${word}`;
    }
    return `${digits(value)}${axis.unit === "×" || axis.unit === "" ? "" : " "}${axis.unit}${word}`;
  }
  const tick = (value, axis) =>
    axis.unit !== "s" || !axis.log ? Number(value.toPrecision(6)).toLocaleString("en")
      : value < 1e-3 ? `${Number((value * 1e6).toPrecision(6))} µs`
        : value < 1 ? `${Number((value * 1e3).toPrecision(6))} ms` : `${Number(value.toPrecision(6))} s`;

  // Where ticks of a logarithmic axis stand: 1, 2 and 5 of a decade where there are few decades, else fewer.
  function logTicks(low, high) {
    const decades = Math.log10(high / low), found = [];
    const parts = decades < 1.6 ? [1, 2, 5] : decades < 2.6 ? [1, 3] : [1];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += Math.ceil(decades / 8) || 1)
      for (const part of parts) {
        const value = part * 10 ** power;
        if (value >= low && value <= high) found.push(Number(value.toPrecision(6)));
      }
    return found.length > 1 ? found : [low, Math.sqrt(low * high), high].map((value) => Number(value.toPrecision(3)));
  }

  // The index in ascending `xs` of the last value up to `x`, and of the nearest one.
  function lastUpTo(xs, x) {
    let low = 0, high = xs.length - 1;
    if (high < 0 || x < xs[0]) return -1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (xs[middle] <= x) low = middle; else high = middle - 1;
    }
    return low;
  }
  function nearestTo(xs, x) {
    const at = lastUpTo(xs, x);
    return at >= 0 && (at + 1 >= xs.length || x - xs[at] <= xs[at + 1] - x) ? at : at + 1;
  }

  class Plot {
    constructor(chart, height, holder, alone) {
      this.chart = chart;
      this.height = height;
      this.shown = chart.series.map(() => true);
      this.holder = element("div", { class: "chart", tabindex: "0", role: "group" });
      this.holder.setAttribute("aria-label", `${chart.title}: interactive plot. Arrow keys move the crosshair, ` +
        "plus and minus zoom, 0 shows everything, Escape hides the crosshair.");
      if (!alone) this.holder.append(element("div", { class: "chart-title" }, chart.title));
      this.place = element("div", { class: "canvas" });
      this.tip = element("div", { class: "tip", hidden: "" });
      this.said = element("div", { class: "said", "aria-live": "polite" });
      this.holder.append(this.place, this.said);
      holder.append(this.holder);
      this.full = this.wholeX();
      this.joinSeries();
      this.u = new uPlot(this.options(), this.data(), this.place);
      this.u.over.append(this.tip);
      this.u.setScale("x", { min: this.full[0], max: this.full[1] });
      this.holder.addEventListener("keydown", (event) => this.onKey(event));
      this.holder.addEventListener("blur", () => this.hideCursor());
      new ResizeObserver(() => this.resize()).observe(this.place);
      every.push(this);
      if (chart.overTime) together.push(this);
    }

    // Lines, steps and areas are uPlot's series; dots, points and bars are drawn over them.
    joinSeries() {
      const { series, stacked } = this.chart;
      this.lines = series.map((_, i) => i).filter((i) => ["line", "steps", "area"].includes(series[i].kind));
      // Of a stack the topmost is drawn first, so that each lower one covers its part of it.
      if (stacked) this.lines.sort((a, b) => (series[a].kind === "area" && series[b].kind === "area" ? b - a : 0));
    }
    stackedY(i) {
      const { series } = this.chart;
      if (!this.chart.stacked || series[i].kind !== "area") return series[i].y;
      return series[i].y.map((own, at) =>
        own == null ? null : series.slice(0, i).reduce(
          (sum, below, j) => sum + (below.kind === "area" && this.shown[j] ? below.y[at] ?? 0 : 0), own));
    }
    data() {
      if (!this.lines.length) return [this.full, [null, null]];
      return uPlot.join(this.lines.map((i) => [this.chart.series[i].x, this.stackedY(i)]));
    }
    wholeX() {
      const { x: axis, series, across, base } = this.chart;
      let values = series.flatMap((each) => across && each.low ? [...each.x, ...each.low, ...each.high] : each.x);
      values = values.filter((value) => value != null && (!axis.log || value > 0));
      if (across && axis.low == null && !axis.log) values.push(base);
      if (!values.length) values = [1, 2];
      return this.padded(Math.min(...values), Math.max(...values), axis);
    }
    padded(low, high, axis) {
      let ends;
      if (axis.names.length) return [-0.7, axis.names.length - 0.3];
      if (axis.log) ends = low === high ? [low / 2, high * 2] : [low / (high / low) ** 0.04, high * (high / low) ** 0.04];
      else {
        const room = (high - low || Math.abs(high) || 1) * 0.06;
        ends = [low - room, high + room];
      }
      return [axis.low ?? ends[0], axis.high ?? ends[1]];
    }
    rangeY(from, to) {
      const { series, marks, across, y: axis } = this.chart;
      let low = Infinity, high = -Infinity;
      series.forEach((each, i) => {
        if (!this.shown[i]) return;
        const values = this.stackedY(i), steps = each.kind === "steps" || each.kind === "area";
        each.x.forEach((x, at) => {
          if ((x < from && !(steps && (each.x[at + 1] ?? x) > from)) || x > to) return;
          for (const value of across ? [values[at]] : [values[at], each.low?.[at], each.high?.[at]]) {
            if (value == null || (axis.log && value <= 0)) continue;
            low = Math.min(low, value);
            high = Math.max(high, value);
          }
        });
      });
      for (const mark of marks) if (mark.axis === "y") { low = Math.min(low, mark.at); high = Math.max(high, mark.at); }
      if (low > high) [low, high] = axis.log ? [1, 10] : [0, 1];
      const [bottom, top] = this.padded(low, high, axis);
      return [bottom, top > bottom ? top : bottom + 1];
    }

    options() {
      const { chart } = this, font = "12px system-ui, sans-serif";
      const axis = (own, scale) => ({
        scale, font, labelFont: font, labelSize: 18, size: scale === "x" ? 30 : this.widthOfTicks(own), gap: 4, label: own.label || null,
        stroke: () => paper.soft, grid: { stroke: () => paper.grid, width: 1 }, ticks: { stroke: () => paper.grid, width: 1, size: 4 },
        ...(own.names.length ? { splits: () => own.names.map((_, i) => i), values: (_, at) => at.map((v) => own.names[v] ?? ""), grid: { show: false } }
          : own.ticks.length ? { splits: () => own.ticks.map(([at]) => at), values: () => own.ticks.map(([, text]) => text) }
            : { ...(own.log ? { splits: (_u, _i, low, high) => logTicks(low, high), filter: (_u, at) => at } : {}), values: (_, at) => at.map((v) => tick(v, own)) }),
      });
      return {
        width: this.width(), height: this.height, legend: { show: false }, padding: [10, 12, 0, 0],
        scales: {
          x: { time: false, distr: chart.x.log ? 3 : 1, range: (_u, low, high) => (low == null ? this.full : [low, high]) },
          y: { distr: chart.y.log ? 3 : 1, range: (u) => this.rangeY(u.scales.x.min ?? this.full[0], u.scales.x.max ?? this.full[1]) },
        },
        axes: [axis(chart.x, "x"), axis(chart.y, "y")],
        series: [{}, ...this.lines.map((i) => this.seriesOptions(chart.series[i]))],
        ...(this.lines.length ? {} : { series: [{}, { show: true, paths: () => null, points: { show: false } }] }),
        cursor: {
          y: chart.nearest, points: { show: false }, drag: { x: true, y: false, dist: 6 },
          ...(chart.overTime ? { sync: { key: "time", setSeries: false, scales: ["x", null], filters: { pub: (type) => type === "mousemove" || type === "mouseleave" } } } : {}),
          bind: { dblclick: () => () => { this.zoom(...this.full); return null; } },
        },
        hooks: {
          drawClear: [() => this.drawShades()],
          draw: [() => this.drawOver()],
          setCursor: [() => this.showTip()],
          setScale: [(_u, key) => { if (key === "x") this.onZoom(); }],
        },
      };
    }
    seriesOptions(own) {
      const steps = own.kind !== "line", area = own.kind === "area", stack = area && this.chart.stacked;
      return {
        stroke: () => (stack ? paper.paper : colour(own.colour)), width: stack ? 0.6 : own.width, dash: own.dashed ? [6, 4] : undefined,
        fill: area ? () => (stack ? own.colour : `${own.colour}40`) : undefined, points: { show: false },
        ...(steps ? { paths: uPlot.paths.stepped({ align: 1 }) } : {}),
      };
    }
    widthOfTicks(axis) {
      const longest = Math.max(...axis.names.map((name) => name.length), 0);
      return longest ? Math.min(Math.max(longest * 6.3 + 12, 46), this.width() * 0.42) : 54;
    }
    width() { return Math.max(this.place.clientWidth, 200); }
    resize() { if (this.place.clientWidth && this.place.clientWidth !== this.u.width) this.u.setSize({ width: this.width(), height: this.height }); }

    clipped(draw) {
      const { ctx, bbox } = this.u;
      ctx.save();
      ctx.beginPath();
      ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
      ctx.clip();
      draw(ctx, bbox, uPlot.pxRatio, (v) => this.u.valToPos(v, "x", true), (v) => this.u.valToPos(v, "y", true));
      ctx.restore();
    }
    drawShades() {
      this.clipped((ctx, box, ratio, px) => {
        ctx.font = `${11 * ratio}px system-ui, sans-serif`;
        ctx.textAlign = "center";
        ctx.textBaseline = "top";
        for (const [left, right, name] of this.chart.shades) {
          const from = Math.max(px(left), box.left), to = Math.min(px(right), box.left + box.width);
          if (name !== "measured") { ctx.fillStyle = paper.shade; ctx.fillRect(from, box.top, to - from, box.height); }
        }
      });
    }
    drawOver() {
      const { series, shades, marks, across, base } = this.chart;
      this.clipped((ctx, box, ratio, px, py) => {
        const thick = 2 * ratio;
        series.forEach((own, i) => {
          if (!this.shown[i] || !["dots", "points", "bars"].includes(own.kind)) return;
          const ink = colour(own.colour);
          ctx.fillStyle = ctx.strokeStyle = ink;
          if (own.kind === "points" && !across) {
            ctx.lineWidth = own.width * ratio;
            ctx.beginPath();
            own.x.forEach((x, at) => ctx[at ? "lineTo" : "moveTo"](px(x), py(own.y[at])));
            ctx.stroke();
          }
          const tall = Math.min(18 * ratio, 0.6 * Math.abs(py(0) - py(1)));
          const size = (own.kind === "points" || own.labelled ? 4 : own.x.length > 800 ? 1.8 : 2.6) * ratio;
          own.x.forEach((value, at) => {
            if (value == null || own.y[at] == null) return;
            const x = px(value), y = py(own.y[at]);
            if (own.kind === "bars") {
              ctx.globalAlpha = 0.6;
              ctx.fillRect(Math.min(px(base), x), y - tall / 2, Math.abs(x - px(base)), tall);
              ctx.globalAlpha = 1;
            }
            if (own.low && own.low[at] != null) {
              ctx.lineWidth = thick;
              ctx.strokeStyle = own.kind === "bars" ? paper.ink : ink;
              ctx.beginPath();
              ctx.moveTo(across ? px(own.low[at]) : x, across ? y : py(own.low[at]));
              ctx.lineTo(across ? px(own.high[at]) : x, across ? y : py(own.high[at]));
              ctx.stroke();
            }
            if (own.kind !== "bars") {
              ctx.beginPath();
              ctx.arc(x, y, size, 0, 2 * Math.PI);
              ctx.globalAlpha = own.kind === "dots" && !own.labelled ? 0.7 : 1;
              ctx.fillStyle = own.hollow?.[at] ? paper.paper : ink;
              ctx.fill();
              ctx.globalAlpha = 1;
              if (own.kind === "points") { ctx.lineWidth = 1.5 * ratio; ctx.strokeStyle = ink; ctx.stroke(); }
            }
          });
        });
        ctx.font = `${11 * ratio}px system-ui, sans-serif`;
        ctx.fillStyle = paper.ink;
        for (const mark of marks) {
          const upright = mark.axis === "x", at = upright ? px(mark.at) : py(mark.at);
          ctx.strokeStyle = paper.ink;
          ctx.lineWidth = ratio;
          ctx.setLineDash(mark.dashed ? [5 * ratio, 4 * ratio] : []);
          ctx.beginPath();
          ctx.moveTo(upright ? at : box.left, upright ? box.top : at);
          ctx.lineTo(upright ? at : box.left + box.width, upright ? box.top + box.height : at);
          ctx.stroke();
          ctx.setLineDash([]);
          this.write(ctx, mark.text, upright ? at + 4 * ratio : box.left + box.width - 4 * ratio, upright ? box.top + 8 * ratio : at - 9 * ratio, upright ? "left" : "right");
        }
        for (const [left, right, name] of shades) {
          const from = Math.max(px(left), box.left), to = Math.min(px(right), box.left + box.width);
          if (to - from > ctx.measureText(name).width + 8 * ratio) this.write(ctx, name, (from + to) / 2, box.top + 9 * ratio, "center");
        }
        series.forEach((own, i) => {
          if (!own.labelled || !this.shown[i]) return;
          own.texts.forEach((text, at) => {
            const x = own.x[at] ?? base, below = across && x < base, end = across ? own.high?.[at] ?? x : x;
            this.write(ctx, text, px(below ? x : end) + (below ? -6 : 6) * ratio, py(own.y[at]) - (across ? 0 : 7 * ratio), below ? "right" : "left");
          });
        });
      });
    }
    // Text on a halo of paper, so that it can be read over lines and areas.
    write(ctx, text, x, y, align) {
      const { left, width } = this.u.bbox;
      // What would leave the plot on the right stands on the left of its point.
      if (align === "left" && x + ctx.measureText(text).width > left + width) [align, x] = ["right", x - 12 * uPlot.pxRatio];
      ctx.textAlign = align;
      ctx.textBaseline = "middle";
      ctx.lineWidth = 3 * uPlot.pxRatio;
      ctx.lineJoin = "round";
      ctx.strokeStyle = paper.paper;
      ctx.fillStyle = paper.ink;
      ctx.strokeText(text, x, y);
      ctx.fillText(text, x, y);
    }

    // What the crosshair says: [series or none, name, value] a line, under a heading.
    reading() {
      const { left, top } = this.u.cursor, { chart } = this;
      if (left == null || left < 0) return null;
      const x = this.u.posToVal(left, "x");
      return chart.nearest ? this.nearestPoint(left, top) : { heading: `${chart.x.title}: ${inUnit(x, chart.x)}`, lines: this.linesAt(x, left, top) };
    }
    linesAt(x, left, top) {
      const lines = [];
      this.chart.series.forEach((own, i) => {
        if (!this.shown[i] || own.labelled || !own.x.length) return;
        const steps = own.kind === "steps" || own.kind === "area";
        const at = steps ? lastUpTo(own.x, x) : nearestTo(own.x, x);
        if (at < 0 || at >= own.x.length) return;
        if (own.kind === "dots") {
          const near = this.nearest(i, left, top, 14);
          if (near) lines.push([own, own.label, inUnit(own.y[near.at], this.chart.y)]);
        } else lines.push([own, own.label, inUnit(own.y[at], this.chart.y)]);
      });
      return lines;
    }
    nearest(i, left, top, within) {
      const own = this.chart.series[i];
      let found = null;
      own.x.forEach((x, at) => {
        if (x == null || own.y[at] == null) return;
        const px = this.u.valToPos(x, "x"), py = this.u.valToPos(own.y[at], "y");
        const far = own.kind === "bars" ? Math.abs(py - top) : Math.hypot(px - left, py - top);
        if (far <= within && far < (found?.far ?? Infinity)) found = { i, at, far, px, py };
      });
      return found;
    }
    nearestPoint(left, top) {
      const { series, x: xAxis, y: yAxis, across } = this.chart;
      const found = series.map((_, i) => (this.shown[i] ? this.nearest(i, left, top, 60) : null))
        .filter(Boolean).sort((a, b) => a.far - b.far)[0];
      return found ? this.reads(found) : { heading: "", lines: [] };
    }
    reads({ i, at }) {
      const { series, x: xAxis, y: yAxis, across } = this.chart, own = series[i];
      const value = across ? xAxis : yAxis, key = across ? yAxis : xAxis;
      const lines = [[own, value.title || own.label, inUnit((across ? own.x : own.y)[at], value)]];
      if (own.low?.[at] != null) {
        const low = inUnit(own.low[at], value), high = inUnit(own.high[at], value), unit = high.slice(`${high} `.indexOf(" "));
        lines.push([null, "95 % interval", `${unit && low.endsWith(unit) ? low.slice(0, -unit.length) : low} to ${high}`]);
      }
      if (!across) lines.push([null, key.title, own.texts && !own.labelled ? own.texts[at] : inUnit(own.x[at], key)]);
      return { heading: across ? inUnit(own.y[at], key) : own.label, lines };
    }
    showTip() {
      const said = this.reading();
      this.tip.hidden = !said || !said.lines.length;
      if (this.tip.hidden) return;
      this.tip.replaceChildren(element("strong", {}, said.heading), ...said.lines.map(([own, name, value]) => {
        const swatch = element("i");
        if (own) swatch.style.background = colour(own.colour);
        return element("div", {}, swatch, element("span", {}, name), element("b", {}, value));
      }));
      const { left, top } = this.u.cursor, room = this.u.over.clientWidth, wide = this.tip.offsetWidth;
      const at = left + 14 + wide <= room ? left + 14 : Math.max(left - wide - 14, Math.min(0, room - wide));
      this.tip.style.transform = `translate(${at}px, ${Math.max(0, Math.min(top - 10, this.u.over.clientHeight - this.tip.offsetHeight))}px)`;
      if (this.spoken) this.said.textContent = `${said.heading}: ${said.lines.map(([, name, value]) => `${name} ${value}`).join(", ")}`;
    }
    hideCursor() { this.spoken = false; this.u.setCursor({ left: -10, top: -10 }, true, true); }

    onKey(event) {
      if (event.target !== this.holder || event.ctrlKey || event.metaKey || event.altKey) return;
      const { over, cursor } = this.u, { min, max } = this.u.scales.x, room = over.clientWidth;
      const here = cursor.left >= 0 ? cursor.left : room / 2;
      let handled = true;
      const step = event.shiftKey ? 10 : 1;
      switch (event.key) {
        case "ArrowLeft": this.step(here, -step); break;
        case "ArrowRight": this.step(here, step); break;
        case "Home": this.step(0, 0); break;
        case "End": this.step(room - 1, 0); break;
        case "+": case "=": this.zoomAround(here / room, 0.5); break;
        case "-": this.zoomAround(here / room, 2); break;
        case "0": this.zoom(...this.full); break;
        case "Escape": this.hideCursor(); break;
        default: handled = false;
      }
      if (handled) event.preventDefault();
    }
    // From point to point where the pointer would name the nearest one, by a hundredth of the width elsewhere.
    step(from, by) {
      const { over } = this.u;
      this.spoken = true;
      let left = Math.min(Math.max(from + by * over.clientWidth / 100, 0), over.clientWidth - 1), top = over.clientHeight / 2;
      if (this.chart.nearest) {
        const points = [];
        this.chart.series.forEach((own, i) => {
          if (this.shown[i]) own.x.forEach((x, at) => { if (x != null && own.y[at] != null) points.push([i, at, x, own.y[at]]); });
        });
        const { across } = this.chart;
        points.sort((a, b) => (across ? b[3] - a[3] : a[2] - b[2] || a[0] - b[0]));
        if (!points.length) return;
        this.on = Math.min(Math.max(by ? (this.on ?? -by) + by : from ? points.length - 1 : 0, 0), points.length - 1);
        left = this.u.valToPos(points[this.on][2], "x");
        top = this.u.valToPos(points[this.on][3], "y");
      }
      this.u.setCursor({ left, top }, true, true);
    }
    zoomAround(share, factor) {
      const log = this.chart.x.log, to = log ? Math.log : (v) => v, back = log ? Math.exp : (v) => v;
      const low = to(this.u.scales.x.min), high = to(this.u.scales.x.max), at = low + (high - low) * share;
      const [first, last] = this.full.map(to);
      this.zoom(back(Math.max(at - (at - low) * factor, first)), back(Math.min(at + (high - at) * factor, last)));
    }
    zoom(min, max) { if (max > min) this.u.setScale("x", { min, max }); }
    get zoomed() {
      const { min, max } = this.u.scales.x, [low, high] = this.full, room = (high - low) * 1e-6;
      return Math.abs(min - low) > room || Math.abs(max - high) > room;
    }
    onZoom() {
      const { min, max } = this.u.scales.x;
      if (this.chart.overTime && min != null)
        for (const other of together)
          if (other !== this && (other.u.scales.x.min !== min || other.u.scales.x.max !== max)) other.u.setScale("x", { min, max });
      this.onZoomed?.();
    }
    toggle(i, on) {
      this.shown[i] = on;
      const at = this.lines.indexOf(i);
      if (at >= 0) this.u.setSeries(at + 1, { show: on });
      this.u.setData(this.data(), false);
      this.u.setScale("x", { min: this.u.scales.x.min, max: this.u.scales.x.max });
    }
  }

  // A cell of a table for spreadsheets, which must not take a name for a formula.
  const cell = (value) => {
    if (value == null) return "";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  function csv(charts) {
    const rows = [["plot", "series", "x", "x_name", "y", "y_name", "low", "high", "text"]];
    for (const chart of charts)
      for (const own of chart.series)
        own.x.forEach((x, at) => rows.push([chart.title, own.label, x, chart.x.label, own.y[at], chart.y.label, own.low?.[at], own.high?.[at], own.texts?.[at]]));
    return rows.map((row) => row.map(cell).join(",")).join("\r\n");
  }
  function save(name, text) {
    const link = element("a", { download: name, href: URL.createObjectURL(new Blob([text], { type: "text/csv" })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  const button = (text, label, act) => {
    const made = element("button", { type: "button", ...(label ? { "aria-label": label, title: label } : {}) }, text);
    made.addEventListener("click", act);
    return made;
  };

  function enliven(plot) {
    const charts = JSON.parse(plot.querySelector("script[type='application/json']").textContent);
    const live = element("div", { class: "live" }), legend = element("div", { class: "legend", role: "group", "aria-label": "Series" });
    const grid = element("div", { class: "grid" }), tools = element("div", { class: "tools" });
    live.append(element("div", { class: "head" }, legend, tools), grid);
    plot.append(live);
    const made = charts.map((chart) => new Plot(chart, Number(plot.dataset.height) + (charts.length > 1 ? 20 : 0), grid, charts.length === 1));
    // One button for all series of a name, of whichever chart of the figure.
    const names = new Map();
    for (const each of made)
      each.chart.series.forEach((own, i) => {
        if (!names.has(own.label)) names.set(own.label, { own, of: [] });
        names.get(own.label).of.push([each, i]);
      });
    if (names.size > 1)
      for (const [label, { own, of }] of names) {
        const swatch = element("i", { class: own.kind });
        swatch.style.setProperty("--own", own.colour === "ink" ? "var(--ink)" : own.colour);
        const toggle = button("", "", () => {
          const on = toggle.getAttribute("aria-pressed") !== "true";
          toggle.setAttribute("aria-pressed", String(on));
          for (const [each, i] of of) each.toggle(i, on);
        });
        toggle.append(swatch, label);
        toggle.setAttribute("aria-pressed", "true");
        legend.append(toggle);
      }
    const reset = button("Reset zoom", "", () => made.forEach((each) => each.zoom(...each.full)));
    reset.hidden = true;
    const name = plot.closest("figure, section")?.querySelector("[id]")?.id || plot.closest("[id]")?.id || "plot";
    tools.append(
      button("+", "Zoom in", () => made.forEach((each) => each.zoomAround(0.5, 0.5))),
      button("−", "Zoom out", () => made.forEach((each) => each.zoomAround(0.5, 2))),
      reset, button("CSV", "Download the values of this plot as CSV", () => save(`${name}.csv`, csv(charts))));
    for (const each of made) each.onZoomed = () => { reset.hidden = !made.some((one) => one.zoomed); };
    plot.classList.add("lively");
    for (const each of made) each.resize();
  }

  readPaper();
  for (const plot of document.querySelectorAll(".plot"))
    if (plot.querySelector("script[type='application/json']")) enliven(plot);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readPaper();
    for (const each of every) each.u.redraw();
  });
  for (const command of document.querySelectorAll("pre.command")) {
    const copy = button("Copy", "Copy the command", async () => {
      try {
        await navigator.clipboard.writeText(command.textContent);
        copy.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(command);
        copy.textContent = "Selected";
      }
    });
    command.before(copy);
  }
  // A drawing inside a part that was closed had no width until it was opened.
  for (const part of document.querySelectorAll("details"))
    part.addEventListener("toggle", () => every.forEach((each) => each.resize()));
})();
