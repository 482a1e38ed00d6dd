// A picture that is dropped: which units fire for it, what it is like, and why one of them answers.
const get = async (address, options) => {
  const response = await fetch(address, options);
  const value = await response.json();
  if (!response.ok) throw new Error(value.error ?? response.statusText);
  return value;
};

const makeLook = (gallery) => {
  const MOST = 20e6;
  const status = byId("look-status"), result = byId("look-result"), drop = byId("drop");
  let picture = null, asked = 0;

  const bar = (share) => el("span", { class: "meter", "aria-hidden": "true" }, el("span", { style: `width:${Math.max(0, Math.min(100, share))}%` }));
  const unit = (firing, most) => {
    const known = gallery?.find(firing.name);
    return el("tr", {},
      el("td", {}, known?.stimulus ? el("img", { src: known.stimulus, alt: "", width: 40, height: 40 }) : ""),
      el("th", { scope: "row" }, known ? el("a", { href: `#unit/${firing.name}` }, firing.name) : firing.name),
      el("td", {}, charts.number(firing.value)), el("td", {}, charts.number(firing.above)), el("td", {}, bar((100 * firing.above) / most)),
      el("td", {}, el("button", { type: "button", "data-explain": firing.name, onclick: () => why(firing.name) }, "Why?")));
  };
  const show = (look) => {
    const tables = look.stages.map(({ stage, units }) => el("details", { open: stage === look.stages[0].stage },
      el("summary", {}, `Stage ${stage}`),
      el("table", {}, el("thead", {}, el("tr", {}, ...["", "Unit", "Value", "Deviations above its mean", "", ""].map((text) => el("th", { scope: "col" }, text)))),
        el("tbody", {}, ...units.map((firing) => unit(firing, units[0].above))))));
    const known = (name) => (gallery?.find(name) ? el("a", { href: `#unit/${name}` }, name) : name);
    const says = look.detectors.map((d) => el("li", {}, el("b", {}, `${d.concept}: ${d.says_yes ? "yes" : "no"}`), ", says unit ", known(d.unit),
      `: ${charts.number(d.value)} is ${d.says_yes ? "" : "not "}above ${charts.number(d.threshold)} (${percent(d.accuracy)} right on the test pictures) `,
      el("button", { type: "button", "data-explain": d.unit, onclick: () => why(d.unit) }, "Why?")));
    const reads = look.classes.map((read) => el("li", {}, el("b", {}, `${read.name}: ${read.answers[0].class}`),
      ` (${read.answers.map((answer) => `${answer.class} ${percent(answer.probability)}`).join(", ")})`,
      read.attention ? el("figure", {}, el("img", { src: read.attention, alt: `Where ${read.name} looks`, width: 192 }), el("figcaption", {}, "where its attention lies")) : ""));
    const name = el("input", { name: "unit", placeholder: "stage:map:row:column", "aria-label": "Unit", required: true, pattern: "\\d+:\\d+:\\d+:\\d+", size: 20 });
    const ask = el("form", { class: "ask", onsubmit: (event) => { event.preventDefault(); why(name.value); } }, el("label", {}, "Another unit ", name), " ", el("button", { class: "button" }, "Why?"));
    result.replaceChildren(
      says.length ? el("ul", { id: "says" }, ...says) : el("p", { class: "soft" }, "Test units with striate evaluate, and what the best of them says of this picture stands here."),
      reads.length ? el("ul", { id: "classes-say", "aria-label": "Classes" }, ...reads) : "",
      el("div", { class: "seen" },
        el("figure", {}, el("img", { id: "seen", src: look.seen, alt: "The picture as the network sees it", width: 192 }), el("figcaption", {}, `${look.width}x${look.height} pixels; this is what the network sees of it`)),
        el("div", { id: "explanation", "aria-live": "polite" })), ask,
      el("h3", {}, "Most unusual answers"), el("p", { class: "soft" }, "Units whose value is the most deviations above its mean over the run's frames."), ...tables,
      el("h3", {}, "Frames most like it"), el("p", { class: "soft" }, "By the cosine of features, of all the run's frames."),
      el("ul", { class: "near" }, ...look.neighbours.map((n) => el("li", {}, el("figure", {}, el("img", { src: n.picture, alt: `frame ${n.key}`, title: n.key, width: 64 }), el("figcaption", {}, n.similarity.toFixed(3)))))));
  };
  const fail = (error) => { status.textContent = `Cannot look at it: ${error.message}`; status.className = "error"; };
  const look = async (file) => {
    const turn = ++asked;
    result.replaceChildren();
    status.className = "";
    if (file.size > MOST) return fail(new Error(`${(file.size / 1e6).toFixed(0)} MB, at most ${MOST / 1e6} are looked at`));
    status.textContent = "Looking …";
    picture = file;
    try {
      const found = await get("look", { method: "POST", body: file });
      if (turn !== asked) return;
      show(found);
      status.textContent = `${file.name || "The picture"} was looked at.`;
      await why(found.detectors[0]?.unit ?? found.first ?? found.stages[0].units[0].name);
    } catch (error) { if (turn === asked) fail(error); }
  };
  const why = async (name) => {
    const place = byId("explanation");
    place.replaceChildren(el("p", { class: "soft" }, `Asking why ${name} answers …`));
    try {
      const e = await get(`explain?unit=${encodeURIComponent(name)}`, { method: "POST", body: picture });
      place.replaceChildren(
        el("h3", {}, "Why unit ", gallery?.find(name) ? el("a", { href: `#unit/${name}` }, name) : name, ` answers ${charts.number(e.value)}`),
        el("div", { class: "heat" }, ...e.maps.map((map) => el("figure", {}, el("img", { src: map.picture, alt: `${map.name}: ${map.words}`, width: 192 }), el("figcaption", {}, el("b", {}, map.name), `, ${map.words}`)))),
        ...e.below.map((stage) => el("p", {}, `Through stage ${stage.stage}: `, ...stage.units.flatMap((u, n) => [n ? ", " : "", gallery?.find(u.name) ? el("a", { href: `#unit/${u.name}` }, u.name) : u.name, ` ${charts.number(u.contribution)}`]))),
        el("p", { class: "soft" }, e.note));
    } catch (error) { place.replaceChildren(el("p", { class: "error" }, `No explanation: ${error.message}`)); }
  };

  byId("file").addEventListener("change", (event) => { if (event.target.files[0]) look(event.target.files[0]); });
  addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  addEventListener("dragleave", () => drop.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files[0]) look(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => { if (event.clipboardData.files[0]) look(event.clipboardData.files[0]); });
};
