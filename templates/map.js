// Frames at places that say how alike their features are.
const makeMap = (map) => {
  const canvas = byId("map-canvas"), panel = byId("map-panel"), method = byId("map-method");
  const context = canvas.getContext("2d");
  const sprite = new Image();
  const [tileW, tileH] = map.tile;
  const methods = Object.keys(map.methods);
  let places = map.methods[methods[0]], chosen = null, hovered = null;
  let zoom = 1, left = 0, top = 0;

  const source = (n) => [(n % map.columns) * tileW, Math.floor(n / map.columns) * tileH];
  const size = () => Math.max(10, Math.min(56, (0.75 * canvas.clientWidth * zoom) / Math.sqrt(map.keys.length)));
  const at = (n) => {
    const margin = 24, [x, y] = places[n];
    return [margin + ((x - left) * zoom) * (canvas.clientWidth - 2 * margin), margin + ((y - top) * zoom) * (canvas.clientHeight - 2 * margin)];
  };
  let asked = false;
  const draw = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      const scale = devicePixelRatio || 1, { clientWidth: w, clientHeight: h } = canvas;
      if (w === 0) return;
      if (canvas.width !== Math.round(w * scale)) { canvas.width = Math.round(w * scale); canvas.height = Math.round(h * scale); }
      context.setTransform(scale, 0, 0, scale, 0, 0);
      context.clearRect(0, 0, w, h);
      context.imageSmoothingEnabled = size() < tileW;
      const side = size(), near = new Set(chosen === null ? [] : map.neighbours[chosen].map(([n]) => n));
      const style = getComputedStyle(document.documentElement), accent = style.getPropertyValue("--accent");
      const one = (n, side) => {
        const [x, y] = at(n);
        if (x < -side || y < -side || x > w + side || y > h + side) return;
        context.drawImage(sprite, ...source(n), tileW, tileH, x - side / 2, y - (side * tileH) / tileW / 2, side, (side * tileH) / tileW);
      };
      map.keys.forEach((_, n) => one(n, side));
      const ring = (n, side, width) => {
        one(n, side);
        const [x, y] = at(n), high = (side * tileH) / tileW;
        context.strokeStyle = accent;
        context.lineWidth = width;
        context.strokeRect(x - side / 2, y - high / 2, side, high);
      };
      near.forEach((n) => ring(n, side * 1.3, 2));
      if (hovered !== null) ring(hovered, side * 1.6, 2);
      if (chosen !== null) ring(chosen, side * 1.8, 4);
    });
  };
  const under = (event) => {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best = null, least = size() ** 2;
    map.keys.forEach((_, n) => {
      const [px, py] = at(n), far = (px - x) ** 2 + (py - y) ** 2;
      if (far <= least) { least = far; best = n; }
    });
    return best;
  };
  const tile = (n, side) => {
    const [x, y] = source(n), factor = side / tileW;
    return el("span", {
      class: "tile", role: "img", "aria-label": `frame ${map.keys[n]}`,
      style: `width:${side}px;height:${Math.round(side * tileH / tileW)}px;background-image:url(${map.sprite});background-position:${-x * factor}px ${-y * factor}px;background-size:${map.columns * side}px auto`,
    });
  };
  const choose = (n) => {
    chosen = n;
    panel.replaceChildren(
      tile(n, 128), el("p", {}, el("b", {}, map.keys[n])),
      el("p", { class: "soft" }, "Nearest of those shown, by the cosine of their features:"),
      el("ul", { class: "near" }, ...map.neighbours[n].map(([other, similarity]) => el("li", {},
        el("button", { type: "button", title: map.keys[other], onclick: () => choose(other) }, tile(other, 56), el("span", {}, similarity.toFixed(3)))))));
    draw();
  };
  const zoomBy = (factor, x = 0.5, y = 0.5) => {
    const next = Math.min(40, Math.max(1, zoom * factor));
    left += x / zoom - x / next;
    top += y / zoom - y / next;
    zoom = next;
    clamp();
    draw();
  };
  const clamp = () => {
    left = Math.min(1 - 1 / zoom, Math.max(0, left));
    top = Math.min(1 - 1 / zoom, Math.max(0, top));
  };

  methods.forEach((name) => method.append(el("option", { value: name }, name === "tsne" ? "t-SNE" : name.toUpperCase())));
  method.value = methods.includes("tsne") ? "tsne" : methods[0];
  places = map.methods[method.value];
  method.addEventListener("change", () => { places = map.methods[method.value]; draw(); });
  byId("map-in").addEventListener("click", () => zoomBy(1.6));
  byId("map-out").addEventListener("click", () => zoomBy(1 / 1.6));
  byId("map-all").addEventListener("click", () => { zoom = 1; left = top = 0; draw(); });
  // The wheel belongs to the page until the map has the focus.
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey) return;
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    zoomBy(Math.exp(-event.deltaY / 300), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }, { passive: false });
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => { drag = { x: event.clientX, y: event.clientY, left, top, moved: false }; });
  canvas.addEventListener("pointermove", (event) => {
    if (drag && event.buttons) {
      const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
      drag.moved ||= Math.hypot(dx, dy) > 4;
      if (drag.moved && zoom > 1) {
        canvas.setPointerCapture(event.pointerId);
        left = drag.left - dx / canvas.clientWidth / zoom;
        top = drag.top - dy / canvas.clientHeight / zoom;
        clamp();
      }
    }
    const over = under(event);
    if (over !== hovered) { hovered = over; canvas.title = over === null ? "" : map.keys[over]; }
    draw();
  });
  canvas.addEventListener("pointerup", (event) => {
    const n = under(event);
    if (drag && !drag.moved && n !== null) choose(n);
    drag = null;
  });
  canvas.addEventListener("pointerleave", () => { hovered = null; draw(); });
  // Arrows go to the next frame that way; + and - zoom.
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "+" || event.key === "=") return zoomBy(1.6);
    if (event.key === "-") return zoomBy(1 / 1.6);
    const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (!way) return;
    event.preventDefault();
    const from = chosen === null ? [canvas.clientWidth / 2, canvas.clientHeight / 2] : at(chosen);
    let best = null, least = Infinity;
    map.keys.forEach((_, n) => {
      const [x, y] = at(n), along = (x - from[0]) * way[0] + (y - from[1]) * way[1], across = Math.abs((x - from[0]) * way[1]) + Math.abs((y - from[1]) * way[0]);
      if (n !== chosen && along > 1 && along + 3 * across < least) { least = along + 3 * across; best = n; }
    });
    if (best !== null) choose(best);
  });
  new ResizeObserver(draw).observe(canvas);
  sprite.onload = draw;
  sprite.src = map.sprite;
};
