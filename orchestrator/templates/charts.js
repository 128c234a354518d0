"use strict";
// Draws the page's figures with plotly, in the page's colours, and shows or hides arms in all of them at once.
(() => {
  const places = [...document.querySelectorAll("[data-figure]")];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const paint = (layout) => {
    const axis = { gridcolor: colour("--grid"), zerolinecolor: colour("--grid"), linecolor: colour("--line") };
    const painted = { ...layout, font: { ...layout.font, color: colour("--soft") } };
    painted.font.family = getComputedStyle(document.body).fontFamily;
    painted.hoverlabel = { ...layout.hoverlabel, bgcolor: colour("--panel"), bordercolor: colour("--line"),
      font: { color: colour("--ink") } };
    painted.annotations = layout.annotations?.map((note) => ({ bgcolor: colour("--paper"), borderpad: 1, ...note }));
    for (const name of ["xaxis", "yaxis"]) painted[name] = { ...axis, ...layout[name] };
    return painted;
  };
  const read = (place) => JSON.parse(document.getElementById(place.dataset.figure).textContent);
  // Without its bar of buttons, which covers the curves where nothing hovers: dragging zooms, a double click goes back.
  const options = { responsive: true, displayModeBar: false };
  for (const place of places) {
    const figure = read(place);
    Plotly.newPlot(place, figure.data, paint(figure.layout), options);
  }
  const repaint = (width) => {
    for (const place of places) {
      const layout = paint(read(place).layout);
      if (width) layout.width = width;
      else layout.autosize = true;
      Plotly.relayout(place, layout);
    }
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => repaint());
  addEventListener("beforeprint", () => repaint(322));
  addEventListener("afterprint", () => { for (const place of places) delete place.layout.width; repaint(); });

  for (const chip of document.querySelectorAll("[data-arm]")) {
    chip.addEventListener("click", () => {
      const shown = chip.getAttribute("aria-pressed") !== "true";
      chip.setAttribute("aria-pressed", shown);
      for (const place of places) {
        const mine = place.data.flatMap((trace, i) => (String(trace.meta?.arm) === chip.dataset.arm ? [i] : []));
        if (mine.length) Plotly.restyle(place, { visible: shown }, mine);
      }
    });
  }
})();
