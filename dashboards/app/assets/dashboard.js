"use strict";
// What happens in the browser alone: the theme, which panel is shown, what is selected, saving a picture.
(function () {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  // As in the style sheet.
  const narrow = window.matchMedia("(max-width: 600px)");
  const none = () => window.dash_clientside.no_update;

  function triggered() {
    const found = window.dash_clientside.callback_context.triggered;
    return found.length ? found[0].prop_id : "";
  }

  const webgl = (function () {
    try { return Boolean(document.createElement("canvas").getContext("webgl")); } catch (_) { return false; }
  })();

  // By itself, Dash asks for it only once it has a figure to draw.
  if (/^\/(study|compare)\b/.test(window.location.pathname)) {
    const early = document.createElement("link");
    early.rel = "preload";
    early.as = "script";
    early.href = "/_dash-component-suites/plotly/package_data/plotly.min.js";
    document.head.append(early);
  }

  // Before anything is drawn, or a dark page would flash.
  let wanted = null;
  try { wanted = JSON.parse(window.localStorage.getItem("wanted-theme")); } catch (_) { /* Not a value of ours. */ }
  root.dataset.theme = wanted || (dark.matches ? "dark" : "light");

  const look = (theme) => (narrow.matches ? theme + " narrow" : theme);
  narrow.addEventListener("change", () => {
    window.dash_clientside.set_props("theme", { data: look(root.dataset.theme) });
  });

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.ftp = {
    theme: function (clicks, before) {
      let theme = before || (dark.matches ? "dark" : "light");
      if (clicks && triggered().startsWith("theme-button")) theme = theme === "dark" ? "light" : "dark";
      else clicks = 0;
      root.dataset.theme = theme;
      return [look(theme), webgl, clicks ? theme : none(), theme === "dark" ? "Light" : "Dark"];
    },

    signOut: function (clicks) {
      const token = document.cookie.match(/(?:^|; )_csrf_token=([^;]*)/);
      if (clicks && token) {
        const headers = { "X-CSRFToken": decodeURIComponent(token[1]) };
        fetch("/api/v1/session", { method: "DELETE", headers: headers }).then(() => window.location.assign("/login"));
      }
      return !token;
    },

    showPanel: function (view, panels) {
      return panels.map((panel) => panel.view !== view);
    },

    // Only the view that is shown is drawn, and only if something of it is new.
    look: function (version, view, theme, webgl, ids, before) {
      const now = { version: version, theme: theme, webgl: webgl };
      const known = (old) => Boolean(old) && Object.keys(now).every((name) => old[name] === now[name]);
      return ids.map((id, place) => (version && id.view === view && !known(before[place]) ? now : none()));
    },

    keepZoom: function (drawn, before) {
      if (!drawn) return [none(), none()];
      const old = (before && before.layout) || {};
      const axes = Object.keys(old).filter((name) => /^[xy]axis\d*$/.test(name));
      for (const axis of old.uirevision === drawn.layout.uirevision ? axes : []) {
        if (old[axis].autorange === false && old[axis].range && drawn.layout[axis]) {
          drawn.layout[axis] = { ...drawn.layout[axis], range: old[axis].range, autorange: false };
        }
      }
      // When a page changes its width, Plotly forgets the height of a figure and takes that of its place.
      return [drawn, { height: drawn.layout.height + "px" }];
    },

    zoomed: function (change) {
      if (!triggered().startsWith("front-figure")) return null;
      if (!change) return none();
      const ends = (axis) => {
        if (change[axis + ".range[0]"] !== undefined) return [change[axis + ".range[0]"], change[axis + ".range[1]"]];
        return change[axis + ".range"] || null;
      };
      const reset = change["xaxis.autorange"] || change["yaxis.autorange"] || change["autosize"];
      const x = ends("xaxis"), y = ends("yaxis");
      if (!x && !y) return change["xaxis.autorange"] || change["yaxis.autorange"] ? null : none();
      const plot = document.querySelector("#front-figure .js-plotly-plot");
      const log = plot && plot._fullLayout.yaxis.type === "log";
      if (reset && !x) return null;
      return { x: x, y: y && log ? y.map((end) => Math.pow(10, end)) : y };
    },

    selected: function (click, typed, walked, before) {
      const by = triggered();
      if (by.startsWith("trial-number")) {
        const number = parseInt(typed, 10);
        return [Number.isInteger(number) && number >= 0 ? number : null, none()];
      }
      if (by.startsWith("walked")) return walked === null ? [none(), none()] : [walked, String(walked)];
      let number = click && click.points.length ? click.points[0].customdata : undefined;
      if (Array.isArray(number)) number = number[0];
      if (!Number.isInteger(number)) return [none(), none()];
      // Whoever clicks what is selected lets it go.
      return number === before ? [null, ""] : [number, String(number)];
    },

    // What is selected comes before what is pointed at.
    pointed: function (selected, hover, before) {
      let number = selected;
      if (!Number.isInteger(number) && hover && hover.points.length) number = hover.points[0].customdata;
      if (Array.isArray(number)) number = number[0];
      number = Number.isInteger(number) ? number : null;
      return number === before ? none() : number;
    },

    savePng: function (clicks) {
      const plot = document.querySelector("#front-figure .js-plotly-plot");
      if (clicks && plot) window.Plotly.downloadImage(plot, { format: "png", scale: 2, filename: "front" });
      return none();
    },
  };
})();
