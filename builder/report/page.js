"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const figures = new Map(data.figures.map((f) => [f.id, f]));
  const state = { weights: "folded", followed: null, pair: [], layer: null };
  const live = new Map(); // figure id -> Vega view
  const distinct = (list) => [...new Set(list)];
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (name, attributes = {}, text) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // ---- rows: a table is stored by column, and unfolded on first use

  const unfolded = new Map();
  function rows(name) {
    if (!unfolded.has(name)) {
      const { n, columns } = data.tables[name];
      const plain = Object.entries(columns).map(([key, c]) => [
        key, c.texts ? c.index.map((i) => (i === null ? null : c.texts[i])) : c,
      ]);
      unfolded.set(name, Array.from({ length: n }, (_, i) =>
        Object.fromEntries(plain.map(([key, c]) => [key, c[i]]))));
    }
    return unfolded.get(name);
  }
  const models = new Map(rows("models").map((m) => [m.model_id, m]));

  function matches(row, where) {
    if ("weights" in row && row.weights !== state.weights) return false;
    return Object.entries(where).every(([key, value]) =>
      value === "$pair" ? state.pair.includes(row[key]) : row[key] === value);
  }

  const derived = {
    tiles() { // bases as nine cells each: unions, the paper's, the followed model's
      const bases = [];
      const ours = rows("pca").filter((r) => r.weights === state.weights);
      for (const union of data.unions) {
        bases.push([union, ours.filter((r) => r.basis === union)]);
        bases.push([`${union}, published`, rows("pca_published").filter(
          (r) => r.basis === union && r.direction)]);
      }
      if (state.followed) {
        bases.push([state.followed, ours.filter((r) => r.basis === state.followed)]);
      }
      return bases.flatMap(([basis, found]) => found.flatMap((r) => r.direction.map((value, i) => ({
        basis, component: r.component, row: Math.floor(i / 3), column: i % 3, value, ratio: r.ratio,
      }))));
    },
    "first-chosen": () => firstFilters(state.pair[0]),
    "first-partner": () => firstFilters(state.pair[1]),
    sample() {
      const [model, layer] = state.layer || [];
      return filters("sample").filter((f) => f.model_id === model && f.layer_index === layer);
    },
  };

  function select(source) {
    if (source.derive) return derived[source.derive]();
    return rows(source.table).filter((r) => matches(r, source.where));
  }

  // ---- filters in eight bits

  function filters(name) {
    const { w, levels } = data.tables[name];
    if (!data.tables[name].bytes) {
      data.tables[name].bytes = Int8Array.from(atob(w), (c) => c.charCodeAt(0));
    }
    const bytes = data.tables[name].bytes;
    return rows(name).map((r, i) => {
      const factor = (r.scale / levels) * (state.weights === "folded" ? r.bn_scale : 1);
      const flat = {};
      for (let k = 0; k < 9; k += 1) {
        flat[`w${Math.floor(k / 3)}${k % 3}`] = Number((bytes[9 * i + k] * factor).toPrecision(4));
      }
      const { scale, bn_scale: bn, linf, ...key } = r;
      return { ...key, ...flat, bn_scale: bn };
    });
  }
  const firstFilters = (model) => (model
    ? filters("first_filters").filter((f) => f.model_id === model) : []);
  const coefficients = (f) => Array.from({ length: 9 }, (_, k) => f[`w${Math.floor(k / 3)}${k % 3}`]);
  const largest = (list) => list.reduce((a, v) => Math.max(a, Math.abs(v)), 0);

  const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  function viridis(share) {
    const at = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
    const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
    const mixed = VIRIDIS[low].map((c, i) => Math.round(c + (at - low) * (VIRIDIS[low + 1][i] - c)));
    return `rgb(${mixed.join(",")})`;
  }

  const SVG = "http://www.w3.org/2000/svg";
  function drawTiles(tiles, label, size) { // in rows of `size` pixels
    const across = Math.min(tiles.length, tiles.length > 32 ? 16 : 8);
    const cell = size / across / 4, gap = cell, step = 3 * cell + gap;
    const svg = document.createElementNS(SVG, "svg");
    const [width, height] = [across * step, Math.ceil(tiles.length / across) * step];
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("width", width);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", label);
    svg.setAttribute("shape-rendering", "crispEdges");
    tiles.forEach((tile, i) => {
      const group = document.createElementNS(SVG, "g");
      const title = document.createElementNS(SVG, "title");
      title.textContent = tile.title;
      group.append(title);
      tile.colours.forEach((fill, k) => {
        const rect = document.createElementNS(SVG, "rect");
        const x = (i % across) * step + (k % 3) * cell;
        const y = Math.floor(i / across) * step + Math.floor(k / 3) * cell;
        for (const [key, v] of Object.entries({ x, y, width: cell, height: cell, fill })) {
          rect.setAttribute(key, v);
        }
        group.append(rect);
      });
      svg.append(group);
    });
    return svg;
  }

  function firstTiles(found) {
    const channels = new Map();
    for (const f of found) {
      const key = `${f.layer} channel ${f.out_channel}`;
      if (!channels.has(key)) channels.set(key, []);
      channels.get(key)[f.in_channel] = coefficients(f);
    }
    const own = one("#own-scale").checked;
    const shared = largest(found.flatMap(coefficients));
    return [...channels].map(([title, rgb]) => {
      const scale = (own ? largest(rgb.flat()) : shared) || 1;
      const level = (v) => Math.round(127.5 + (127.5 * v) / scale);
      return {
        title: `${title}: largest weight ${largest(rgb.flat()).toPrecision(3)}`,
        colours: Array.from({ length: 9 }, (_, k) => `rgb(${rgb.map((c) => level(c[k])).join(",")})`),
      };
    });
  }

  function sampleTiles(found) {
    return found.map((f) => {
      const w = coefficients(f);
      const scale = largest(w) || 1;
      return {
        title: `output channel ${f.out_channel}, input channel ${f.in_channel}: `
          + `largest weight ${largest(w).toPrecision(3)}`,
        colours: w.map((v) => viridis(0.5 + v / scale / 2)),
      };
    });
  }

  function drawPicture(figure, chart) {
    const found = select(figure.data[figure.behind]);
    chart.replaceChildren();
    chart.classList.add("tiles");
    const what = figure.id === "gallery-layer"
      ? `${found.length} filters of ${state.layer ? layerName(...state.layer) : "no layer"}`
      : `First-layer filters of ${found.length ? found[0].model_id : "no model"}`;
    if (found.length) {
      const tiles = figure.id === "gallery-layer" ? sampleTiles(found) : firstTiles(found);
      chart.append(drawTiles(tiles, what, 512));
      chart.append(make("p", { class: "of" }, what));
    }
    return found.length;
  }

  // ---- charts

  const dark = () => document.documentElement.classList.contains("dark");
  function theme() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const [ink, soft, line, card] = ["ink", "soft", "line", "card"].map(colour);
    return {
      background: card,
      font: "system-ui, 'Segoe UI', Roboto, 'Noto Sans', sans-serif",
      axis: { labelColor: soft, titleColor: ink, titleFontWeight: 500, gridColor: line,
        domainColor: soft, tickColor: soft, labelFontSize: 11, titleFontSize: 12 },
      legend: { labelColor: ink, titleColor: ink, labelFontSize: 12 },
      header: { labelColor: ink, titleColor: ink, labelFontSize: 12 },
      text: { fill: soft },
      view: { stroke: null },
    };
  }
  const lighter = { "#0072B2": "#56B4E9", "#D55E00": "#FF8B3D" };
  function themed(spec) { // the two darkest colours, readable on a dark ground
    const text = JSON.stringify(spec);
    return JSON.parse(dark()
      ? text.replace(/#0072B2|#D55E00/g, (c) => lighter[c]) : text);
  }

  function fitted(spec, chart) { // a row of small charts, as many as there is room for
    if (!spec.facet) return spec;
    const room = chart.clientWidth;
    const columns = Math.max(1, Math.min(3, Math.floor(room / 240)));
    spec.columns = columns;
    spec.spec.width = Math.max(120, Math.floor((room - 50) / columns) - 60);
    return spec;
  }

  function fitTiles(spec, chart) { // a coefficient is a square, and names have a fifth of the width
    const shown = distinct(spec.datasets.tiles.map((t) => t.basis));
    const room = chart.clientWidth;
    const longest = Math.max(...shown.flatMap((b) => b.split(", ")).map((line) => line.length));
    const names = Math.min(170, room * 0.22, 12 + 6.5 * longest);
    const beside = room > 700; // of the legend
    const step = Math.min((room - names - (beside ? 90 : 12)) / 9, Math.max(40, 520 / shown.length));
    spec.width = Math.round(9 * step);
    spec.height = Math.round(shown.length * step * 4 / 3);
    spec.config = { axisY: { labelLimit: names },
      text: { fontSize: Math.min(12, step * 0.3), opacity: step < 34 ? 0 : 1 },
      legend: { orient: beside ? "right" : "top" } };
  }

  const chosen = () => JSON.stringify([state, dark()]);
  async function draw(id) {
    const figure = figures.get(id);
    const before = chosen();
    const holder = document.getElementById(id);
    const chart = one(".chart", holder);
    let n = 0;
    if (!figure.spec) {
      n = drawPicture(figure, chart);
    } else {
      const datasets = Object.fromEntries(
        Object.entries(figure.data).map(([name, source]) => [name, select(source)]));
      n = Object.values(datasets).reduce((sum, list) => sum + list.length, 0);
      const spec = fitted(themed(figure.spec), chart);
      spec.datasets = datasets;
      spec.description = `${figure.title}. ${figure.texts[state.weights]}`;
      for (const p of spec.params || []) if (p.name === "followed") p.value = state.followed;
      if (figure.id === "bases") fitTiles(spec, chart);
      live.get(id)?.finalize();
      live.delete(id);
      if (n) {
        const made = await vegaEmbed(chart, spec, { actions: false, renderer: "svg", config: theme(),
          logLevel: 1 }); // errors: an empty layer is no news
        if (chosen() !== before) { // something else was chosen while this was drawn
          made.view.finalize();
          return draw(id);
        }
        live.set(id, made.view);
        for (const g of all("g[role=graphics-symbol]:not([aria-label])", chart)) {
          if (g.children.length) continue;
          g.removeAttribute("role"); // an empty layer says nothing
          g.removeAttribute("aria-roledescription");
        }
        made.view.addEventListener("click", (event, item) => {
          if (item && item.datum && models.has(item.datum.model_id)) follow(item.datum.model_id);
        });
      } else {
        chart.replaceChildren();
      }
    }
    chart.hidden = !n;
    const missing = one(".missing", holder);
    missing.hidden = n > 0;
    missing.textContent = n ? "" : `Nothing to draw here with ${state.weights} weights.`;
    holder.dataset.drawn = "yes";
    fillBehind(holder);
  }

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        seen.unobserve(entry.target);
        draw(entry.target.id);
      }
    }
  }, { rootMargin: "300px" });

  const drawn = () => all("figure[data-drawn]").map((f) => f.id);
  const redraw = (ids = drawn()) => Promise.all(ids.map(draw));

  // ---- tables and files

  const shown = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number" && !Number.isInteger(value)) return String(Number(value.toPrecision(6)));
    if (Array.isArray(value)) return `[${value.map(shown).join(", ")}]`;
    return String(value);
  };
  const LIMIT = 500;
  function fillTable(place, columns, list, caption) {
    const table = make("table");
    table.append(make("caption", { class: "hidden" }, caption));
    const head = make("tr");
    const number = columns.map((_, i) => list.some((r) => typeof r[i] === "number"));
    columns.forEach((c, i) => head.append(make("th", { scope: "col", class: number[i] ? "number" : "" }, c)));
    const thead = make("thead");
    thead.append(head);
    const body = make("tbody");
    for (const row of list.slice(0, LIMIT)) {
      const line = make("tr");
      row.forEach((v, i) => line.append(make("td", { class: number[i] ? "number" : "" }, shown(v))));
      body.append(line);
    }
    table.append(thead, body);
    place.replaceChildren(table);
    if (list.length > LIMIT) place.append(make("p", {}, `${LIMIT} of ${list.length} rows; the CSV has all.`));
    if (!list.length) place.replaceChildren(make("p", {}, "No rows."));
  }
  function tabular(list) {
    const columns = list.length ? Object.keys(list[0]) : [];
    return [columns, list.map((r) => columns.map((c) => r[c]))];
  }
  const behind = (figure) => tabular(select(figure.data[figure.behind]));
  function fillBehind(holder) {
    const details = one("details.behind", holder);
    if (!details.open) return;
    const figure = figures.get(holder.id);
    fillTable(one(".rows", details), ...behind(figure), figure.title);
  }

  const quoted = (v) => {
    const text = v === null || v === undefined ? "" : Array.isArray(v) ? JSON.stringify(v) : String(v);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const csv = (columns, list) => [columns, ...list].map((r) => r.map(quoted).join(",")).join("\n") + "\n";
  function save(name, blob) {
    const url = URL.createObjectURL(blob);
    const link = make("a", { href: url, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }
  const asText = (text, type) => new Blob([text], { type: `${type};charset=utf-8` });

  async function svgOf(id) {
    if (!document.getElementById(id).dataset.drawn) await draw(id);
    if (live.has(id)) return live.get(id).toSVG();
    const svg = one("svg", document.getElementById(id));
    return svg ? new XMLSerializer().serializeToString(svg) : null;
  }
  async function pngOf(id) {
    const svg = await svgOf(id);
    if (!svg) return null;
    const image = new Image();
    image.src = URL.createObjectURL(asText(svg, "image/svg+xml"));
    await image.decode();
    const canvas = make("canvas", { width: 2 * image.naturalWidth, height: 2 * image.naturalHeight });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    URL.revokeObjectURL(image.src);
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  }
  async function saveFigure(id, form) {
    if (form === "csv") return save(`${id}.csv`, asText(csv(...behind(figures.get(id))), "text/csv"));
    const picture = form === "svg" ? await svgOf(id) : await pngOf(id);
    if (!picture) return tell("There is no picture to save.");
    return save(`${id}.${form}`, form === "svg" ? asText(picture, "image/svg+xml") : picture);
  }

  // ---- following a model, choosing pairs and layers

  const tell = (text) => { one("#said").textContent = text; };
  function follow(id) {
    state.followed = id;
    one("#follow").value = id || "";
    tell(id ? `Following ${id}.` : "");
    for (const view of live.values()) view.signal("followed", id).runAsync();
    if (id) {
      if (firstModels.includes(id)) choosePair(id);
      if (sampledModels.includes(id)) chooseSample(id);
    }
    if (document.getElementById("bases")?.dataset.drawn) draw("bases");
  }

  const textsOf = (name) => {
    const columns = data.tables[name].columns;
    return distinct(columns.model_id.index).map((i) => columns.model_id.texts[i]);
  };
  const firstModels = distinct([...textsOf("first_filters"), ...textsOf("responses")]).sort();
  const sampledModels = textsOf("sample").sort();

  function options(select_, names) {
    select_.replaceChildren(...names.map(([value, text]) => make("option", { value }, text)));
  }
  function choosePair(id) {
    const partner = models.get(id)?.partner;
    state.pair = partner ? [id, partner] : [id];
    const pick = one("#pick-first");
    if (pick) pick.value = id;
    redraw(drawn().filter((f) => /^(first|response)-/.test(f)));
  }
  const layerNames = new Map();
  const layerName = (model, index) =>
    `${layerNames.get(`${model}\n${index}`) ?? `layer ${index}`} of ${model}`;
  function chooseSample(id, index) {
    const layers = distinct(rows("sample").filter((r) => r.model_id === id).map((r) => r.layer_index));
    if (!layerNames.size) {
      for (const l of rows("layers")) layerNames.set(`${l.model_id}\n${l.layer_index}`, l.layer);
    }
    options(one("#pick-layer"), layers.map((i) => [i, layerName(id, i).split(" of ")[0]]));
    state.layer = [id, index ?? layers[0]];
    one("#pick-model").value = id;
    one("#pick-layer").value = state.layer[1];
    redraw(drawn().filter((f) => f === "gallery-layer"));
  }

  // ---- the table of models

  const TITLES = { n_layers: "layers", n_filters: "filters", n_sparse: "sparse filters",
    n_params: "parameters", clean_acc: "clean %", autoattack_acc: "AutoAttack %", model_id: "model",
    same_filters_as: "same filters as", paper_url: "paper", source_url: "checkpoint",
    variance_entropy: "variance entropy", dataset: "data set" };
  const SHOWN = new Set(["model_id", "architecture", "clean_acc", "autoattack_acc", "sparsity",
    "variance_entropy", "orthogonality", "n_layers", "n_filters", "same_filters_as", "paper_url",
    "source_url"]);
  const NARROW = new Set(["paper_url", "source_url", "partner", "same_filters_as"]);
  const DIGITS = [[/_acc$/, 2], [/^(sparsity|variance_entropy|orthogonality)/, 4]];
  const link = (text) => /^https?:\/\//i.test(text);
  function cellOf(column, value) { // a node: text from a cohort is never markup
    if (value === null || value === undefined) return "";
    if (column === "model_id") {
      const button = make("button", { type: "button", class: "name" }, value);
      button.addEventListener("click", () => follow(value));
      return button;
    }
    if (column.endsWith("_url") && link(value)) {
      return make("a", { href: value, rel: "noopener noreferrer" }, new URL(value).host);
    }
    if (column === "same_filters_as") return make("span", { class: "same", title: value }, `= ${value}`);
    if (typeof value !== "number") return make("span", { title: value }, shown(value));
    const digits = DIGITS.find(([name]) => name.test(column));
    if (digits) return make("span", { title: value }, value.toFixed(digits[1]));
    return make("span", {}, column.startsWith("n_") ? value.toLocaleString("en") : shown(value));
  }
  async function modelTable() {
    const place = one("#model-table");
    if (!place) return;
    const code = asText(one("#datatables").textContent, "text/javascript");
    const url = URL.createObjectURL(code);
    const { default: DataTable } = await import(url);
    URL.revokeObjectURL(url);
    const list = rows("models");
    const columns = Object.keys(list[0]);
    const table = new DataTable(place, {
      data: list,
      columns: columns.map((c) => ({
        data: c,
        title: (TITLES[c] || c).replaceAll("_", " "),
        visible: SHOWN.has(c) && list.some((r) => r[c] !== null),
        type: list.some((r) => typeof r[c] === "number") ? "num" : "string",
        className: c === "model_id" ? "whole" : NARROW.has(c) ? "narrow" : "",
        render: (value, type) => (type === "display" ? cellOf(c, value) : value ?? ""),
      })),
      deferRender: true,
      autoWidth: false,
      pageLength: 25,
      order: [],
      layout: {
        topStart: { buttons: [
          { extend: "colvis", text: "Columns" },
          { text: "CSV", action: () => save("models.csv", asText(csv(...tabular(list)), "text/csv")) },
        ] },
        topEnd: { search: { placeholder: "any text" } },
      },
    });
    for (const c of ["dataset", "kind", "architecture"]) {
      const label = make("label", {}, `${TITLES[c] || c} `);
      const choice = make("select");
      options(choice, [["", "all"], ...distinct(list.map((r) => r[c])).sort().map((v) => [v, v])]);
      choice.addEventListener("change", () => {
        const wanted = choice.value;
        table.column(columns.indexOf(c)).search(wanted ? (text) => text === wanted : "").draw();
      });
      label.append(choice);
      one("#model-filters").append(label);
    }
    place.dataset.ready = "yes";
  }

  // ---- wiring

  for (const button of all("[data-save]")) {
    button.addEventListener("click", () =>
      saveFigure(button.closest("figure").id, button.dataset.save));
  }
  for (const details of all("details.behind")) {
    details.addEventListener("toggle", () => fillBehind(details.closest("figure")));
  }
  const findings = new Map(data.findings.map((f) => [f.query, f]));
  for (const article of all(".finding")) {
    const found = findings.get(article.dataset.query);
    one("[data-copy]", article).addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(found.sql);
      } catch { // where the clipboard is not granted: select, for the reader to copy
        getSelection().selectAllChildren(one("pre", article));
        document.execCommand("copy");
      }
      tell(`Copied the SQL of ${found.query}.`);
    });
    one("[data-answer-csv]", article).addEventListener("click", () =>
      save(`${found.query}.csv`, asText(csv(found.columns, found.rows), "text/csv")));
    one("details.answer", article).addEventListener("toggle", () =>
      fillTable(one("details.answer .rows", article), found.columns, found.rows, found.query));
  }
  for (const radio of all("#weights input")) {
    radio.addEventListener("change", () => {
      state.weights = radio.value;
      document.documentElement.dataset.weights = radio.value;
      tell(`${radio.value} weights.`);
      redraw();
    });
  }
  one("#follow").addEventListener("change", (event) => {
    const id = event.target.value;
    if (models.has(id)) follow(id);
    else if (!id) follow(null);
    else tell(`No model is called ${id}.`);
  });
  one("#unfollow").addEventListener("click", () => follow(null));
  const button = one("#theme");
  function setTheme(on) {
    document.documentElement.classList.toggle("dark", on);
    button.setAttribute("aria-pressed", String(on));
    redraw();
  }
  button.addEventListener("click", () => setTheme(!dark()));
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  prefers.addEventListener("change", (event) => setTheme(event.matches));
  setTheme(prefers.matches);

  one("#models-list").append(...[...models.keys()].map((id) => make("option", { value: id })));
  if (one("#pick-first")) {
    options(one("#pick-first"), firstModels.map((id) => [id, id]));
    choosePair(firstModels.find((id) => models.get(id).partner) || firstModels[0]);
    one("#pick-first").addEventListener("change", (event) => choosePair(event.target.value));
    one("#own-scale").addEventListener("change", () =>
      redraw(drawn().filter((f) => f.startsWith("first-"))));
  }
  if (one("#pick-model")) {
    options(one("#pick-model"), sampledModels.map((id) => [id, id]));
    chooseSample(sampledModels[0]);
    one("#pick-model").addEventListener("change", (event) => chooseSample(event.target.value));
    one("#pick-layer").addEventListener("change", (event) =>
      chooseSample(state.layer[0], Number(event.target.value)));
  }
  for (const f of data.figures) {
    seen.observe(document.getElementById(f.id));
  }
  let resizing;
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(resizing);
    resizing = setTimeout(() => redraw(drawn().filter(
      (id) => id === "bases" || figures.get(id).spec?.facet)), 200);
  });
  modelTable().then(() => { document.documentElement.dataset.ready = "yes"; });
})();
