"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 640px)");
  const touch = window.matchMedia("(pointer: coarse)");
  const tip = document.getElementById("tip");

  // "var(--chosen)" -> its value in the theme that is on, all through a figure
  function painted(value, style) {
    if (typeof value === "string") {
      const name = /^var\((--[a-z-]+)\)$/.exec(value);
      return name ? style.getPropertyValue(name[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => painted(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, painted(item, style)]));
    }
    return value;
  }

  // plotly reads markup in labels: a name from the data is to be shown as it is
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const clipped = (text, most) => {
    const letters = Array.from(text);
    return letters.length > most ? letters.slice(0, most - 1).join("") + "…" : text;
  };

  function draw(name, figure) {
    const place = document.getElementById("plot-" + name);
    const style = getComputedStyle(document.documentElement);
    const axis = () => ({ gridcolor: "var(--grid)", linecolor: "var(--line)", zerolinecolor: "var(--line)" });
    const layout = structuredClone(figure.layout);
    for (const key of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
      layout[key] = { ...axis(), automargin: true, ...layout[key] };
    }
    if (figure.labels) {
      const { axis: which, at, text } = figure.labels;
      Object.assign(layout[which], {
        tickvals: at, ticktext: text.map((label) => plain(clipped(label || "(none)", narrow.matches ? 16 : 36))),
      });
    }
    if (narrow.matches && name === "map") layout.height = 400;
    Object.assign(layout, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: "var(--ink)", size: narrow.matches ? 11 : 13 },
      hoverlabel: { bgcolor: "var(--card)", bordercolor: "var(--muted)", font: { color: "var(--ink)" } },
      dragmode: touch.matches ? false : layout.dragmode || false,
    });
    const config = { responsive: true, displayModeBar: false, scrollZoom: name === "map" && !touch.matches };
    return Plotly.react(place, painted(figure.data, style), painted(layout, style), config);
  }

  function show(event, entry) {
    const at = event.changedTouches ? event.changedTouches[0] : event;
    tip.replaceChildren();
    const line = (text, kind) => {
      const part = document.createElement("div");
      part.className = kind;
      part.dir = "auto";
      part.textContent = text;  // never as markup
      tip.append(part);
    };
    const rank = entry.rank === null || entry.rank === undefined ? "" : `, chosen as number ${entry.rank + 1}`;
    line(`row ${entry.row}${rank}`, "meta");
    if (entry.task) line(entry.task, "meta");
    if (entry.text) line(entry.text, "text");
    tip.style.display = "block";
    const box = tip.getBoundingClientRect();
    const x = Math.min(at.clientX + 14, window.innerWidth - box.width - 12);
    const below = at.clientY + 16 + box.height < window.innerHeight;
    tip.style.left = `${Math.max(x, 12)}px`;
    tip.style.top = `${Math.max(below ? at.clientY + 16 : at.clientY - box.height - 12, 8)}px`;
  }

  const all = () => Promise.all(Object.entries(figures).map(([name, figure]) => draw(name, figure)));
  all().then(() => {
    const map = document.getElementById("plot-map");
    if (map) {
      const { tips } = figures.map;
      const tell = ({ points: [point], event }) => show(event, tips[point.curveNumber][point.pointNumber]);
      map.on("plotly_hover", tell);
      map.on("plotly_click", tell);  // a tap hovers over nothing
      map.on("plotly_unhover", () => { tip.style.display = "none"; });
      window.addEventListener("scroll", () => { tip.style.display = "none"; }, { passive: true });
    }
    document.documentElement.dataset.drawn = "yes";
  });
  for (const query of [dark, narrow]) query.addEventListener("change", all);
})();
