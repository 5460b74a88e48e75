"use strict";
// What happens in the browser alone: the theme, which panel is shown, what is selected and zoomed, saving a picture,
// local times, and what is said of a service that does not answer.
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

  // Dash says nothing of a service that is gone, or lets nobody in any more: its pages would go on looking alive.
  const ask = window.fetch.bind(window);
  const CALLBACK = "/_dash-update-component";
  const ASKED = [CALLBACK, "/_dash-layout", "/_dash-dependencies"];
  const SHOW_MS = 500, LATE_MS = 20000, AGAIN_MS = 5000;
  // The bar, the timer that will show it, whether nobody answered, and whether a whole page was lost so.
  let bar = null, soon = 0, isAway = false, isLost = false;

  // Not at once: whoever leaves a page breaks off what it asked for.
  function hasFailed() {
    if (!bar && !soon) soon = window.setTimeout(showBar, SHOW_MS);
  }

  function barOf(text) {
    const made = document.createElement("div");
    made.className = "alert away";
    made.setAttribute("role", "alert");
    made.textContent = text;
    document.body.prepend(made);
    return made;
  }

  function showBar() {
    soon = 0;
    bar = barOf("The service does not answer. This page shows what was last known.");
  }

  // What is said of views whose callbacks fail, by output, and the bar that says it.
  const failures = new Map();
  let failureBar = null;

  function outputOf(path, body) {
    if (path !== CALLBACK) return path;
    try { return JSON.parse(body).output; } catch (_) { return path; }
  }

  // Callbacks of other views go on being answered.
  function hasSucceeded(output) {
    // A new page has none of the old one's views.
    if (output.startsWith("page.children")) failures.clear();
    failures.delete(output);
    showFailures();
  }

  function viewFailed(output, status) {
    // Several outputs of one callback stand between dots.
    const place = output.replace(/^\.\./, "").replace(/\.[^.]*(\.\.\..*)?(\.\.)?$/, "");
    const found = document.getElementById(place);
    const named = found && found.closest("section[aria-label]");
    const view = named ? `The view ${named.getAttribute("aria-label")}` : "A view of this page";
    const hint = status < 500 ? "Reload the page." : "What it shows may be old. The log of the service says why.";
    failures.set(output, `${view} failed. ${hint}`);
    showFailures();
  }

  function showFailures() {
    const text = [...new Set(failures.values())].join(" ");
    if (failureBar && failureBar.textContent === text) return;
    if (failureBar) failureBar.remove();
    failureBar = text ? barOf(text) : null;
  }

  function isGone(path, body) {
    isLost = isLost || path !== CALLBACK || String(body).includes('"output":"page.children');
    // Not every page asks by itself.
    if (!isAway) window.setTimeout(askAgain, AGAIN_MS);
    isAway = true;
    hasFailed();
  }

  function askAgain() {
    if (!isAway) return;
    const later = () => window.setTimeout(askAgain, AGAIN_MS);
    ask("/api/v1/ready").then((answer) => (answer.ok ? hasAnswered() : later()), later);
  }

  function hasAnswered() {
    const wasAway = isAway;
    window.clearTimeout(soon);
    if (bar) bar.remove();
    bar = null; soon = 0; isAway = false;
    if (!wasAway) return;
    if (isLost) { window.location.reload(); return; }
    // What could not be drawn meanwhile is drawn now.
    const set = window.dash_clientside.set_props;
    if (document.getElementById("study-head")) set("version", { data: null });
    if (document.getElementById("compare-figure")) set("compare-again", { disabled: false });
  }

  window.fetch = function (what, how) {
    const answer = ask(what, how);
    const path = new URL(what.url || what, window.location.href).pathname;
    if (!ASKED.includes(path)) return answer;
    const late = window.setTimeout(hasFailed, LATE_MS);
    const gone = () => isGone(path, how && how.body);
    const heard = ({ status, headers }) => {
      const said = Date.parse(headers.get("date"));
      if (said) ahead = said - Date.now();
      if (status === 401) {
        const next = encodeURIComponent(window.location.pathname + window.location.search);
        window.location.assign("/login?next=" + next);
        return;
      }
      // What is worse than a failure is said of a service, or of a database, that is not there.
      if (status > 500) { gone(); return; }
      hasAnswered();
      const output = outputOf(path, how && how.body);
      if (status < 400) hasSucceeded(output);
      else viewFailed(output, status);
    };
    answer.then(heard, gone).finally(() => window.clearTimeout(late));
    return answer;
  };

  // How far the service's clock is ahead of the browser's, in milliseconds.
  let ahead = 0;

  function countOn() {
    for (const place of document.querySelectorAll("[data-since]")) {
      const seconds = Math.max(0, Math.round((Date.now() + ahead - Date.parse(place.dataset.since)) / 1000));
      const pair = (large, small, unit, other) => `${Math.floor(seconds / large)} ${unit} ${Math.floor((seconds % large) / small)} ${other}`;
      place.textContent = seconds < 60 ? `${seconds} s` : seconds < 3600 ? pair(60, 1, "min", "s") : pair(3600, 60, "h", "min");
    }
  }
  window.setInterval(countOn, 1000);

  // The service does not know its users' clocks. A page that draws such an element again writes the service's time anew.
  const asTold = { dateStyle: "medium", timeStyle: "long" };
  new MutationObserver(() => {
    for (const time of document.querySelectorAll("time[datetime]")) {
      const local = new Date(time.dateTime).toLocaleString(undefined, asTold);
      if (time.textContent !== local) time.textContent = local;
    }
  }).observe(root, { childList: true, subtree: true, characterData: true, attributeFilter: ["datetime"] });

  // Dash makes anew what it draws again, and with it what had the keyboard's focus: its successor gets it.
  let focused = null;
  const successor = (gone) => (gone.id ? document.getElementById(gone.id)
    : [...document.querySelectorAll(gone.tagName)].find((one) => one.href === gone.href && one.textContent === gone.textContent
      && one.getAttribute("aria-label") === gone.getAttribute("aria-label")));
  document.addEventListener("focusin", (event) => { focused = event.target; });
  // What is left without being taken away is let go.
  document.addEventListener("focusout", (event) => { if (!event.relatedTarget && event.target.isConnected) {
    window.setTimeout(() => { if (event.target.isConnected && focused === event.target) focused = null; });
  } });
  new MutationObserver(() => {
    if (!focused || focused.isConnected) return;
    const next = document.activeElement === document.body && successor(focused);
    focused = null;
    if (next) next.focus({ preventScroll: true });
  }).observe(root, { childList: true, subtree: true });

  // The keyboard, where it is on nothing that has keys of its own: arrows go along the front, Escape lets a trial go.
  const WALKS = { ArrowLeft: "trial-before", ArrowRight: "trial-after" };
  document.addEventListener("keydown", (event) => {
    const at = document.activeElement, front = document.getElementById("front-figure");
    if (!front || !front.checkVisibility() || event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    const isFree = at === document.body || at.id === "page" || at.matches(".beside, .beside *, #trial-before, #trial-after");
    if (event.key === "Escape" && (isFree || at.id === "trial-number")) window.dash_clientside.set_props("trial-number", { value: "" });
    else if (isFree && WALKS[event.key]) document.getElementById(WALKS[event.key]).click();
    else return;
    event.preventDefault();
  });

  // Anywhere on its row a trial can be clicked, if no text is being marked there.
  document.addEventListener("click", (event) => {
    const row = event.target.closest("tr.row");
    if (row && !event.target.closest("button") && !String(window.getSelection())) row.querySelector("button").click();
  });

  // What the address of a page holds: the page's path, what is kept of it, the values by parameter, and the address that
  // the page is on its way to.
  let path = null, kept = [], values = {}, target = null;

  const asList = (value) => (Array.isArray(value) ? value : [String(value ?? "")]);
  const isSame = (one, other) => JSON.stringify(asList(one)) === JSON.stringify(asList(other));

  // The address of values: what is as by default is left out, and an empty list has the parameter's name alone.
  function searchOf(values) {
    const parts = new URLSearchParams();
    for (const one of kept.filter((each) => !isSame(values[each.name], each.default))) {
      const list = asList(values[one.name]);
      for (const value of list.length ? list : [""]) parts.append(one.name, value);
    }
    return parts.size ? "?" + parts : "";
  }

  // The values of the present address, as the service reads them.
  function addressed() {
    const asked = new URLSearchParams(window.location.search);
    const valueOf = (one) => {
      const isPossible = (value) => !one.choices || one.choices.includes(value);
      if (!asked.has(one.name)) return one.default;
      const said = asked.getAll(one.name);
      if (Array.isArray(one.default)) return said.filter((value) => value && isPossible(value));
      return isPossible(said.at(-1)) ? said.at(-1) : one.default;
    };
    return Object.fromEntries(kept.map((one) => [one.name, valueOf(one)]));
  }

  // A figure with what somebody left out of the one before, in its legend or along its axes.
  function withChoices(drawn, before) {
    const old = new Map(((before && before.data) || []).map((trace) => [trace.uid, trace]));
    for (const trace of drawn.data) {
      const own = old.get(trace.uid);
      if (!own) continue;
      if (own.visible === "legendonly") trace.visible = own.visible;
      (trace.dimensions || []).forEach((one, at) => {
        const other = (own.dimensions || [])[at];
        if (other && other.label === one.label && other.constraintrange) one.constraintrange = other.constraintrange;
      });
    }
    return drawn;
  }

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.ftp = {
    titled: function (path) {
      const [, page, ...rest] = (path || "/").split("/");
      let title = { "": "Studies", new: "New study", compare: "Compare", study: rest.join("/") }[page] || "";
      try { title = decodeURIComponent(title); } catch (_) { /* Then as it is in the address. */ }
      document.title = title ? title + " - ftp-search" : "ftp-search";
    },

    writeAddress: function (...said) {
      kept = said.pop();
      const before = values, isNew = path !== window.location.pathname;
      values = Object.fromEntries(kept.map((one, at) => [one.name, said[at]]));
      if (isNew) { path = window.location.pathname; target = null; return none(); }
      const search = searchOf(values);
      if (target !== null) {
        // Back changes several values one after the other.
        if (search === target) target = null;
        return none();
      }
      const now = addressed();
      if (kept.every((one) => isSame(now[one.name], values[one.name]))) return none();
      const isTyped = kept.every((one) => one.is_typed || isSame(before[one.name], values[one.name]));
      window.history[isTyped ? "replaceState" : "pushState"]({}, "", path + search);
      // So that Dash hears of it.
      window.dispatchEvent(new PopStateEvent("popstate"));
      return none();
    },

    readAddress: function () {
      if (path !== window.location.pathname) return;
      const now = addressed(), changed = kept.filter((one) => !isSame(values[one.name], now[one.name]));
      if (!changed.length) return;
      target = searchOf(now);
      for (const one of changed) window.dash_clientside.set_props(one.component, { [one.prop]: now[one.name] });
    },

    // Another order, or another search, begins with its first page, unless an address says which.
    turnPage: function (before, after, ...others) {
      const by = triggered(), number = parseInt(others.pop(), 10) || 1;
      if (by.endsWith("-before.n_clicks") && before) return String(Math.max(1, number - 1));
      if (by.endsWith("-after.n_clicks") && after) return String(number + 1);
      return target === null && by && !by.endsWith(".n_clicks") ? "1" : none();
    },

    // The heading of a column sorts by it, and once more the other way round.
    sortBy: function (clicks, ids, before) {
      const at = ids.findIndex((id, place) => clicks[place] && triggered().includes(`"${id.column}"`));
      if (at < 0) return none();
      return before === ids[at].column ? `-${before}` : ids[at].column;
    },

    copyLink: function (clicks) {
      const link = window.location.href;
      const said = (words) => {
        window.dash_clientside.set_props("copy-link", { children: words });
        window.setTimeout(() => window.dash_clientside.set_props("copy-link", { children: "Copy link" }), 2000);
      };
      // Browsers have a clipboard for pages over HTTPS and of the same machine alone.
      const byHand = () => {
        const text = document.createElement("textarea");
        text.value = link;
        document.body.append(text);
        text.select();
        said(document.execCommand("copy") ? "Copied" : "Not copied");
        text.remove();
      };
      if (!navigator.clipboard) byHand();
      else navigator.clipboard.writeText(link).then(() => said("Copied"), byHand);
      return none();
    },

    theme: function (clicks, before) {
      let theme = before || (dark.matches ? "dark" : "light");
      if (clicks && triggered().startsWith("theme-button")) theme = theme === "dark" ? "light" : "dark";
      else clicks = 0;
      root.dataset.theme = theme;
      return [look(theme), webgl, clicks ? theme : none(), theme === "dark" ? "Light" : "Dark"];
    },

    signOut: function (clicks) {
      const token = document.cookie.match(/(?:^|; )_csrf_token=([^;]*)/);
      if (token && !clicks) {
        const say = (who) => window.dash_clientside.set_props("who", { children: `${who.name}, ${who.role}` });
        ask("/api/v1/session").then((answer) => (answer.ok ? answer.json().then(say) : null));
      }
      if (clicks && token) {
        const headers = { "X-CSRFToken": decodeURIComponent(token[1]) };
        fetch("/api/v1/session", { method: "DELETE", headers: headers }).then(() => window.location.assign("/login"));
      }
      return !token;
    },

    showPanel: function (view, panels) {
      return panels.map((panel) => panel.view !== view);
    },

    // Only the view that is shown is drawn, and only if something of it is new. Without a version, nothing is known.
    look: function (version, view, theme, webgl, ids, before) {
      if (!version) return before.map((old) => (old ? null : none()));
      const now = { version: version, theme: theme, webgl: webgl };
      const known = (old) => Boolean(old) && Object.keys(now).every((name) => old[name] === now[name]);
      return ids.map((id, place) => (id.view === view && !known(before[place]) ? now : none()));
    },

    keepLegend: function (drawn, before) {
      return drawn ? withChoices(drawn, before) : none();
    },

    keepZoom: function (drawn, before) {
      if (!drawn) return [none(), none()];
      withChoices(drawn, before);
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

    // An axis that a change does not name stays as it was: dragging along one, or a double click on one, names it alone.
    // As the service reads it: the ends across, then upwards.
    zoomed: function (change, x, y, before) {
      // Another quantity shows everything, unless an address says what.
      if (!triggered().startsWith("front-figure")) return target === null ? "" : none();
      if (!Object.keys(change || {}).some((name) => /^[xy]axis\.(range|autorange)/.test(name))) return none();
      const plot = document.querySelector("#front-figure .js-plotly-plot");
      const ends = (name, old) => {
        const axis = plot._fullLayout[name];
        // Who drags one end of an axis names that end.
        const named = [0, 1].map((end) => (change[name + ".range"] || [])[end] ?? change[`${name}.range[${end}]`]);
        if (change[name + ".autorange"]) return "_";
        if (named.every((end) => end === undefined)) return old;
        const range = named.map((end, at) => end ?? axis.range[at]);
        const shown = axis.type === "log" ? range.map((end) => Math.pow(10, end)) : range;
        return shown.map((end) => Number(end.toPrecision(6))).join("_");
      };
      const [x0, x1, y0, y1] = before ? before.split("_") : ["", "", "", ""];
      const zoom = `${ends("xaxis", `${x0}_${x1}`)}_${ends("yaxis", `${y0}_${y1}`)}`;
      return zoom === "___" ? "" : zoom;
    },

    selected: function (click, typed, walked, before) {
      const by = triggered();
      if (by.startsWith("trial-number")) {
        const typedNumber = parseInt(typed, 10);
        const number = Number.isInteger(typedNumber) && typedNumber >= 0 ? typedNumber : null;
        // A field that appears with a number says so, too.
        return [number === (before ?? null) ? none() : number, none()];
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

    // What stands beside a field, and what is wrong with it, belongs to its input for those who cannot see it there.
    described: function (said, ids) {
      const tie = (triesLeft) => {
        const places = ids.map((id) => document.getElementById(`{"name":"${id.name}","type":"field-said"}`));
        if (places.includes(null)) {
          if (triesLeft) window.requestAnimationFrame(() => tie(triesLeft - 1));
          return;
        }
        places.forEach((place, at) => {
          const field = place.closest(".field"), hiding = place.closest("details");
          if (said[at] && hiding) hiding.open = true;
          const inputs = field.matches("fieldset") ? [field] : field.querySelectorAll("input");
          for (const input of inputs) {
            input.setAttribute("aria-describedby", `about-${ids[at].name} ${place.id}`);
            input.setAttribute("aria-invalid", String(Boolean(said[at])));
          }
        });
      };
      tie(100);
      return none();
    },

    savePng: function (clicks) {
      const plot = document.querySelector("#front-figure .js-plotly-plot");
      if (clicks && plot) window.Plotly.downloadImage(plot, { format: "png", scale: 2, filename: "front" });
      return none();
    },
  };
})();
