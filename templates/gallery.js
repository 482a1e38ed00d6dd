// The list of units: sorted, searched, and shown as far as one scrolls.
const el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};
const byId = (id) => document.getElementById(id);

const unitName = (name) => {
  const [stage, map, row, col] = name.split(":").map(Number);
  return { stage, map, row, col };
};
const spoken = (name) => {
  const { stage, map, row, col } = unitName(name);
  return `stage ${stage}, map ${map}, row ${row}, column ${col}`;
};
const percent = (share) => `${(100 * share).toFixed(1)} %`;

const makeGallery = (data) => {
  const CHUNK = 120;
  const list = byId("cards"), more = byId("more"), shown = byId("shown");
  const state = { stage: "", sort: "place", search: "", like: null };
  const place = new Map(data.units.map((unit, n) => [unit.name, n]));
  const words = data.units.map((unit) => `${unit.name} ${spoken(unit.name).replaceAll(",", "")} ${unit.top.keys.join(" ")}`.toLowerCase());

  // Signatures as vectors of length 1: their products are correlations.
  let vectors = null;
  const vectorOf = (unit) => {
    const bytes = Uint8Array.from(atob(unit.signature), (c) => c.charCodeAt(0));
    const values = Float32Array.from(new Int8Array(bytes.buffer));
    const mean = values.reduce((a, b) => a + b, 0) / (values.length || 1);
    values.forEach((v, n) => { values[n] = v - mean; });
    const norm = Math.hypot(...values);
    if (norm > 0) values.forEach((v, n) => { values[n] = v / norm; });
    return values;
  };
  const alike = (name) => {
    vectors ??= data.units.map(vectorOf);
    const one = vectors[place.get(name)];
    return vectors.map((other) => other.reduce((sum, v, n) => sum + v * one[n], 0));
  };

  let likeness = null;
  const score = (n) => {
    const unit = data.units[n];
    if (state.sort === "like") return likeness?.[n] ?? -Infinity;
    if (state.sort.startsWith("concept-")) return unit.accuracy[Number(state.sort.slice(8))] ?? -Infinity;
    return unit[state.sort] ?? -Infinity;
  };
  const badge = (n) => {
    const unit = data.units[n];
    if (state.sort === "like") return `r ${charts.number(likeness?.[n])}`;
    if (state.sort.startsWith("concept-")) {
      const share = unit.accuracy[Number(state.sort.slice(8))];
      return share === null ? "not tested" : percent(share);
    }
    if (state.sort === "kurtosis") return `kurtosis ${charts.number(unit.kurtosis)}`;
    if (state.sort === "gain") return unit.gain === null ? "" : `gain ${charts.number(unit.gain)}`;
    return unit.value === null ? "no gradient" : charts.number(unit.value);
  };

  let order = [];
  let drawn = 0;
  const card = (unit, text) => {
    const alt = unit.stimulus ? `Preferred stimulus of ${spoken(unit.name)}` : "";
    return el("li", {}, el("a", { class: "card", href: `#unit/${unit.name}`, "data-unit": unit.name },
      unit.stimulus
        ? el("img", { class: "stimulus", src: unit.stimulus, alt, width: 96, height: 96, loading: "lazy", decoding: "async" })
        : el("span", { class: "flat" }, "no gradient"),
      el("img", { class: "strip", src: unit.top.picture, alt: `Its top frames: ${unit.top.keys.slice(0, 4).join(", ")}`, height: 24, loading: "lazy", decoding: "async" }),
      el("span", { class: "label" }, el("b", {}, unit.name), el("span", {}, text))));
  };
  const draw = () => {
    const next = order.slice(drawn, drawn + CHUNK);
    list.append(...next.map((n) => card(data.units[n], badge(n))));
    drawn += next.length;
    more.hidden = drawn >= order.length;
  };
  const show = () => {
    // From the start of a word, so that `map 1` is not found in `bitmap 1`, nor frame 27 in 5.27; and a unit's numbers are whole, so
    // that it is not found in `map 10`.
    const search = state.search.trim().toLowerCase().replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
    const whole = /:\d+$|^(stage|map|row|column) \d+$/.test(search) ? "(?!\\d)" : "";
    const wanted = new RegExp(`(?<![\\p{L}\\p{N}.:])${search.replace(/\s+/g, "\\s+")}${whole}`, "u");
    const all = data.units.map((_, n) => n);
    order = all.filter((n) => (state.stage === "" || data.units[n].name.startsWith(`${state.stage}:`)) && (search === "" || wanted.test(words[n])));
    if (state.sort !== "place") order.sort((a, b) => score(b) - score(a) || a - b);
    list.replaceChildren();
    drawn = 0;
    draw();
    shown.textContent = order.length === 1 ? "1 unit" : `${order.length} units`;
    if (order.length === 0) list.append(el("li", { class: "soft" }, "No unit is like that."));
  };
  new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting) && !more.hidden) draw();
  }, { rootMargin: "600px" }).observe(more);
  more.addEventListener("click", draw);

  // Names of units in text lead to their pages.
  document.querySelectorAll(".explained li").forEach((line) => {
    const parts = line.textContent.split(/(\d+:\d+:\d+:\d+)/);
    line.replaceChildren(...parts.map((part) => (place.has(part) ? el("a", { href: `#unit/${part}` }, part) : part)));
  });
  // Beside the name of a unit, what it prefers and the frames that drive it most.
  document.querySelectorAll("[data-prefers]").forEach((cell) => {
    const name = cell.dataset.prefers, unit = place.has(name) ? data.units[place.get(name)] : null;
    if (!unit?.stimulus) return;
    cell.append(el("img", { src: unit.stimulus, alt: `Preferred stimulus of unit ${name}`, width: 48, height: 48, decoding: "async" }));
  });

  const stages = [...new Set(data.units.map((unit) => unitName(unit.name).stage))];
  byId("stage").append(...stages.map((stage) => el("option", { value: stage }, `${stage}`)));
  byId("sort").append(...data.concepts.map((concept, n) => el("option", { value: `concept-${n}` }, `tells ${concept.name} from others`)));
  byId("stage").addEventListener("change", (event) => { state.stage = event.target.value; show(); });
  byId("sort").addEventListener("change", (event) => { state.sort = event.target.value; show(); });
  byId("search").addEventListener("input", (event) => { state.search = event.target.value; show(); });

  // Arrows go from card to card.
  list.addEventListener("keydown", (event) => {
    const cards = [...list.querySelectorAll(".card")], at = cards.indexOf(document.activeElement);
    if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const across = cards.findIndex((card) => card.offsetTop > cards[0].offsetTop);
    const columns = across < 0 ? cards.length : across;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -at, End: cards.length - 1 - at }[event.key];
    if (step === undefined || !cards[at + step]) return;
    event.preventDefault();
    cards[at + step].focus();
  });

  const sortLike = (name) => {
    likeness = alike(name);
    byId("sort").querySelector("[value=like]")?.remove();
    byId("sort").append(el("option", { value: "like" }, `responds like ${name}`));
    byId("sort").value = state.sort = "like";
    byId("stage").value = state.stage = "";
    byId("search").value = state.search = "";
    show();
  };
  // The units before and after in the order shown.
  const beside = (name) => {
    const at = order.indexOf(place.get(name));
    const name_of = (n) => (n === undefined ? null : data.units[n].name);
    return at < 0 ? [null, null] : [name_of(order[at - 1]), name_of(order[at + 1])];
  };
  // The most alike, itself left out.
  const nearest = (name, count) => {
    const r = alike(name);
    const others = data.units.map((_, n) => n).filter((n) => n !== place.get(name));
    return others.sort((a, b) => r[b] - r[a]).slice(0, count).map((n) => ({ unit: data.units[n], r: r[n] }));
  };
  show();
  return { card, sortLike, beside, nearest, find: (name) => data.units[place.get(name)] };
};
