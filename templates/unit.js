// A page for each unit, at `#unit/NAME`.
const makeUnitPage = (data, gallery, pageOf) => {
  const view = byId("unit-page"), rest = byId("everything");
  const title = document.title;
  let back = 0;

  const figure = (picture, alt, caption, attributes = {}) => el("figure", {}, el("img", { src: picture, alt, decoding: "async", ...attributes }), el("figcaption", {}, ...caption));
  const frames = (row, heading, alt) => el("figure", { class: "frames" },
    el("figcaption", {}, el("b", {}, heading), row.values.length ? `: ${charts.number(row.values[0])} to ${charts.number(row.values.at(-1))}` : ""),
    el("img", { src: row.picture, alt: `${alt}: ${row.keys.join(", ")}`, decoding: "async" }),
    el("details", {}, el("summary", {}, "Names and values"), el("ol", {}, ...row.keys.map((key, n) => el("li", {}, `${key}: ${charts.number(row.values[n])}`)))));
  const mean = (page) => (page.mean ? [figure(page.mean.picture, `Mean of its ${page.mean.frames} top frames`, [`Mean of its ${page.mean.frames} top frames, each with its own mean and contrast removed`], { width: 160, height: 160 })] : []);
  const signed = (x) => (x > 0 ? `+${charts.number(x)}` : charts.number(x));

  const stimuli = (unit, page) => page.stimuli.map((s) => {
    if (s.flat) return el("div", { class: "flat" }, `No stimulus at ${s.title}, as there is no gradient to climb: ${s.flat}.`);
    const pixels = s.pixels ?? unit.stimulus;
    return el("figure", { class: "pair" },
      el("div", {},
        el("img", { src: pixels, alt: `Preferred stimulus at ${s.title}, as pixels`, width: 160, height: 160 }),
        el("img", { src: s.seen, alt: "The same as the network sees it", width: 160, height: 160 })),
      el("figcaption", {}, el("b", {}, charts.number(s.value)), ` at ${s.title}; left as pixels, right as the network sees it`, el("br"),
        `start ${s.start}`, s.best_frame === null ? "" : `; best frame ${charts.number(s.best_frame)} (${signed(s.gain)})`,
        s.enhanced ? el("i", {}, `; ${s.enhanced}`) : ""));
  });
  const detectors = (page) => page.detectors.map((d) => {
    const concept = data.concepts.find((c) => c.name === d.concept);
    return el("figure", { class: "chart-figure" },
      charts.histogram({ label: `Histogram of ${d.kind} on ${d.concept} and on others`, xName: `value (${d.kind})`, range: d.range, counts: d.histogram, mark: d.threshold }),
      el("figcaption", {}, el("span", { class: "key-0" }, d.concept), " and ", el("span", { class: "key-1" }, "others"), `, % of each. Above ${charts.number(d.threshold)}: `,
        el("b", {}, percent(d.accuracy)), ` right (always “no”: ${percent(concept.always_no)}); threshold from the other half ${percent(d.held_out)}; `,
        `area under ROC ${d.auc.toFixed(3)}, average precision ${d.average_precision.toFixed(3)}; sign turned ${percent(d.flipped)}`));
  });
  const tunings = (page) => page.tunings.flatMap((t) => {
    if (!t.orientation.length) return [el("p", { class: "soft" }, `Gratings do not drive ${t.kind}${t.silent ? `: ${t.silent}` : ""}.`)];
    return [
      el("figure", { class: "chart-figure" }, charts.line({ label: `Response (${t.kind}) over orientation`, xName: "orientation, degrees", xs: t.orientations_deg, ys: t.orientation }),
        el("figcaption", {}, `${t.kind}: ${t.words}`)),
      el("figure", { class: "chart-figure" }, charts.line({ label: `Response (${t.kind}) over spatial frequency`, xName: "log2 of cycles per pixel", xs: t.frequencies_per_px.map(Math.log2), ys: t.frequency }), el("figcaption", {}, "over spatial frequency, at the best orientation")),
    ];
  });
  const invariances = (page) => page.invariances.flatMap((i) => [
    el("p", { class: "soft" }, `Pictures of ${i.pictures}, value ${i.kind}: ${charts.number(i.selectivity)} deviations above rest when unchanged. What is left of that, and its quartiles over pictures: 1 all of it, 0 no more than to any frame.`),
    el("div", { class: "charts" }, ...i.changes.map((c) => el("figure", { class: "chart-figure" }, charts.line({ label: `What is left of the response over ${c.name}`, xName: c.name, xs: c.amounts, ys: c.left, band: c.quartiles, from: 0, to: 1 })))),
  ]);
  const section = (heading, ...content) => (content.flat().length ? el("section", {}, el("h3", {}, heading), ...content.flat()) : null);

  const render = (unit, page) => {
    const { stage } = unitName(unit.name);
    const [before, after] = gallery.beside(unit.name);
    const o = page.over_frames;
    const near = gallery.nearest(unit.name, 12);
    view.replaceChildren(...[
      el("nav", { "aria-label": "Units", class: "unit-nav" },
        el("a", { href: "#units", class: "button" }, "← All units"),
        before && el("a", { href: `#unit/${before}`, class: "button", rel: "prev" }, `‹ ${before}`),
        after && el("a", { href: `#unit/${after}`, class: "button", rel: "next" }, `${after} ›`)),
      el("h2", { tabindex: -1 }, `Unit ${unit.name}`),
      el("p", { class: "soft" }, `${spoken(unit.name)[0].toUpperCase()}${spoken(unit.name).slice(1)}. Over all frames: mean ${charts.number(o.mean)}, deviation ${charts.number(o.deviation)}, skewness ${charts.number(o.skewness)}, kurtosis ${charts.number(o.kurtosis)} (0 for a Gaussian; large for a unit that is silent most of the time).`),
      section("What it prefers", el("div", { class: "stimuli" }, ...stimuli(unit, page))),
      section("Frames", ...mean(page), frames(unit.top, "Top frames, the most from the left", "Top frames"), frames(page.bottom, "Lowest frames", "Lowest frames")),
      section("What it detects", ...(page.detectors.length ? [el("div", { class: "charts" }, ...detectors(page))] : [])),
      section("Tuning to gratings", ...(page.tunings.length ? [el("div", { class: "charts" }, ...tunings(page))] : [])),
      section("What it does not mind", ...invariances(page)),
      section("Why it answered", ...[...document.querySelectorAll("#explanations .explained")].filter((figure) => figure.dataset.unit === unit.name).map((figure) => figure.cloneNode(true))),
      section("Units that respond like it",
        el("p", { class: "soft" }, "Correlation r of responses on up to 256 frames."),
        el("ul", { class: "cards" }, ...near.map(({ unit: other, r }) => gallery.card(other, `r ${charts.number(r)}`))),
        el("p", {}, el("button", { type: "button", onclick: () => { gallery.sortLike(unit.name); location.hash = "#units"; } }, "Sort all units by likeness to this one"))),
    ].filter((part) => part !== null));
    document.title = `Unit ${unit.name} · ${title}`;
    view.dataset.stage = stage;
  };

  const route = async () => {
    const name = /^#unit\/(\d+:\d+:\d+:\d+)$/.exec(decodeURIComponent(location.hash))?.[1];
    const unit = name && gallery.find(name);
    if (unit) {
      if (view.hidden) back = scrollY;
      const page = await pageOf(unit);
      render(unit, page);
    } else {
      document.title = title;
    }
    const leaves = !unit && !view.hidden, last = view.querySelector("h2")?.textContent.replace("Unit ", "");
    view.hidden = !unit;
    rest.hidden = Boolean(unit);
    if (unit) {
      scrollTo(0, 0);
      view.querySelector("h2").focus({ preventScroll: true });
    } else if (leaves) {
      if (location.hash === "#units" || location.hash === "") scrollTo(0, back);
      else document.getElementById(location.hash.slice(1))?.scrollIntoView();
      document.querySelector(`#cards [data-unit="${CSS.escape(last)}"]`)?.focus({ preventScroll: true });
    }
    if (name && !unit) {
      byId("shown").textContent = `unit ${name} is not among those drawn; striate visualize --units all draws all`;
      byId("units").scrollIntoView();
    }
  };
  addEventListener("hashchange", route);
  addEventListener("keydown", (event) => {
    if (view.hidden || event.altKey || event.ctrlKey || event.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.key === "Escape") location.hash = "#units";
    if (event.key === "ArrowLeft") view.querySelector("[rel=prev]")?.click();
    if (event.key === "ArrowRight") view.querySelector("[rel=next]")?.click();
  });
  route();
};
