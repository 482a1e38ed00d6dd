"use strict";
{
  const byId = (id) => document.getElementById(id);
  const stages = [...document.querySelectorAll(".stage")];
  const units = new Map(stages.map((stage) => [stage, [...stage.querySelectorAll(".unit")]]));
  const text = new Map([...units.values()].flat().map((unit) => [unit, unit.textContent.toLowerCase()]));
  const number = (unit, key) => (key in unit.dataset ? Number(unit.dataset[key]) : -Infinity);

  const sort = () => {
    const key = byId("sort").value;
    for (const [stage, all] of units) {
      const order = key === "place" ? all : [...all].sort((a, b) => number(b, key) - number(a, key) || 0);
      stage.querySelector(".units").append(...order);
    }
  };
  const filter = () => {
    // From the start of a word, so that `map 1` is not found in `bitmap 1`, nor frame 27 in 5.27.
    const words = byId("search").value.trim().toLowerCase().replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
    const wanted = new RegExp(`(?<![\\p{L}\\p{N}.])${words.replace(/\s+/g, "\\s+")}`, "u");
    let shown = 0;
    for (const [stage, all] of units) {
      const chosen = ["", stage.dataset.stage].includes(byId("stage").value);
      let here = 0;
      for (const unit of all) {
        unit.hidden = !wanted.test(text.get(unit));
        here += unit.hidden ? 0 : 1;
      }
      stage.hidden = !chosen || here === 0;
      shown += chosen ? here : 0;
    }
    byId("shown").textContent = shown === 1 ? "1 unit" : `${shown} units`;
  };
  byId("sort").addEventListener("change", sort);
  byId("stage").addEventListener("change", filter);
  byId("search").addEventListener("input", filter);
  document.querySelectorAll(".scripted").forEach((tool) => { tool.hidden = false; });
  // A browser may keep what was chosen before the page was loaded again.
  sort();
  filter();
}
