// Small charts as SVG, drawn from numbers.
const charts = (() => {
  const NS = "http://www.w3.org/2000/svg";
  const W = 300, H = 170, LEFT = 40, RIGHT = 10, TOP = 12, BOTTOM = 32;
  const svg = (tag, attributes = {}, text) => {
    const node = document.createElementNS(NS, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const number = (x) => {
    if (x === null || x === undefined) return "";
    const size = Math.abs(x);
    const text = size !== 0 && (size < 1e-3 || size >= 1e5) ? x.toExponential(1) : String(Number(x.toPrecision(3)));
    return text.replace("-", "−");
  };
  const extent = (values, least, most) => {
    const finite = values.filter(Number.isFinite);
    const low = Math.min(least ?? Infinity, ...finite), high = Math.max(most ?? -Infinity, ...finite);
    return high > low ? [low, high] : [low - 0.5, low + 0.5];
  };
  const frame = (label, xs, ys, xName) => {
    const root = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label, class: "chart" });
    const x = (v) => LEFT + ((v - xs[0]) / (xs[1] - xs[0])) * (W - LEFT - RIGHT);
    const y = (v) => H - BOTTOM - ((v - ys[0]) / (ys[1] - ys[0])) * (H - TOP - BOTTOM);
    for (const part of [0, 0.5, 1]) {
      const value = ys[0] + part * (ys[1] - ys[0]);
      root.append(svg("line", { x1: LEFT, x2: W - RIGHT, y1: y(value), y2: y(value), class: "grid" }));
      root.append(svg("text", { x: LEFT - 5, y: y(value) + 3.5, "text-anchor": "end" }, number(value)));
    }
    for (const [value, anchor] of [[xs[0], "start"], [(xs[0] + xs[1]) / 2, "middle"], [xs[1], "end"]]) {
      root.append(svg("text", { x: x(value), y: H - BOTTOM + 13, "text-anchor": anchor }, number(value)));
    }
    root.append(svg("text", { x: (LEFT + W - RIGHT) / 2, y: H - 4, "text-anchor": "middle", class: "axis" }, xName));
    return { root, x, y };
  };
  const path = (points) => points.map(([x, y], n) => `${n ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

  // One curve; `band` has [low, middle, high] for each point, `mark` is a place on the x axis.
  const line = ({ label, xName, xs, ys, band, from, to, mark }) => {
    const finite = (n) => Number.isFinite(xs[n]) && Number.isFinite(ys[n]);
    const all = [...ys, ...(band ?? []).flatMap((q) => [q[0], q[2]])];
    const { root, x, y } = frame(label, extent(xs), extent(all, from, to), xName);
    if (band) {
      const upper = band.map((q, n) => [x(xs[n]), y(q[2])]), lower = band.map((q, n) => [x(xs[n]), y(q[0])]).reverse();
      root.append(svg("path", { d: `${path([...upper, ...lower])}Z`, class: "band" }));
    }
    if (mark !== undefined) root.append(svg("line", { x1: x(mark), x2: x(mark), y1: TOP, y2: H - BOTTOM, class: "mark" }));
    const points = xs.map((_, n) => n).filter(finite).map((n) => [x(xs[n]), y(ys[n])]);
    root.append(svg("path", { d: path(points), class: "line" }));
    points.forEach(([cx, cy]) => root.append(svg("circle", { cx, cy, r: 1.8, class: "dot" })));
    return root;
  };

  // Two histograms over the same bins, each as shares of its own total, and a threshold.
  const histogram = ({ label, xName, range, counts, mark }) => {
    const shares = counts.map((of) => {
      const total = of.reduce((a, b) => a + b, 0) || 1;
      return of.map((count) => (100 * count) / total);
    });
    const xs = range[1] > range[0] ? range : [range[0], range[0] + 1];
    const { root, x, y } = frame(label, xs, [0, Math.max(1, ...shares.flat())], xName);
    const width = (xs[1] - xs[0]) / counts[0].length;
    shares.forEach((bars, series) => bars.forEach((share, n) => {
      const left = x(xs[0] + n * width), right = x(xs[0] + (n + 1) * width);
      if (share > 0) {
        root.append(svg("rect", { x: left, width: right - left - 0.5, y: y(share), height: y(0) - y(share), class: `bar-${series}` }));
      }
    }));
    root.append(svg("line", { x1: x(mark), x2: x(mark), y1: TOP - 4, y2: H - BOTTOM, class: "mark" }));
    return root;
  };
  return { line, histogram, number };
})();
