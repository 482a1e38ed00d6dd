"use strict";
{% include "charts.js" %}
{% include "gallery.js" %}
{% include "unit.js" %}
{% include "map.js" %}
// Day and night.
{
  const button = byId("theme"), root = document.documentElement;
  const kept = () => { try { return localStorage.getItem("striate-theme"); } catch { return null; } };
  const set = (theme) => { if (theme) root.dataset.theme = theme; };
  set(kept());
  button.hidden = false;
  button.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    set(dark ? "light" : "dark");
    try { localStorage.setItem("striate-theme", root.dataset.theme); } catch { /* a file may not keep anything */ }
  });
}
if (byId("data")) {
  const data = JSON.parse(byId("data").textContent);
  makeUnitPage(data, makeGallery(data), (unit) => unit.page);
}
if (byId("map-data")) makeMap(JSON.parse(byId("map-data").textContent));
{% if is_served %}
{% include "live.js" %}
get("units.json").then((data) => {
  const gallery = data && makeGallery(data);
  if (data) makeUnitPage(data, gallery, (unit) => get(`unit/${unit.name}`));
  makeLook(gallery);
});
{% endif %}
