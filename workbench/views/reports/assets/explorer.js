"use strict";
// Sliders without a kernel: stored points of one study, one curve, one picture. While a slider moves, only the rings at the current point do, and
// pictures that were drawn ahead are exchanged: a full redraw of three charts would take longer than a hand notices.

(() => {
  const source = document.getElementById("study");
  if (!source || !source.textContent.trim()) return;
  const study = JSON.parse(source.textContent), root = document.querySelector(".explorer"), { element, show, config } = workbench;
  const ink = "#767676", grid = "rgba(128,128,128,0.22)";
  const find = (selector) => root.querySelector(selector);
  const figure = Object.fromEntries(["curve", "picture", "series"].map((name) => [name, find(`figure.${name}`)]));
  const chart = Object.fromEntries(Object.entries(figure).map(([name, node]) => [name, node.querySelector(".plotly")]));
  const main = study.contenders.filter((c) => c.role !== "ablation");
  const state = {
    knob: 0, at: study.knobs.map((knob) => knob.grid.indexOf(knob.default)), shown: new Set(main.slice(0, 8).map((c) => c.name)),
    x: study.cost, y: study.quality, guess: null, open: false, waiting: false,
  };
  const axisLabel = (name) => (study.metrics[name] || study.knobs.find((knob) => knob.name === name)).label;
  const digits = (name, value) => (value === null || value === undefined ? "–" : study.metrics[name]
    ? value.toLocaleString("en", { minimumFractionDigits: study.metrics[name].decimals, maximumFractionDigits: study.metrics[name].decimals }) : show(value));

  // The knob values, or the values of a metric, along a contender's curve.
  const along = (contender, name) => {
    const curve = contender.curves[state.knob];
    return name in study.metrics ? curve[name][0] : name === study.knobs[state.knob].name ? curve.at : curve.at.map(() => null);
  };
  const here = (contender) => {
    const at = contender.curves[state.knob].at, value = study.knobs[state.knob].grid[state.at[state.knob]];
    return at[0] === null ? 0 : at.findIndex((other) => Math.abs(other - value) <= 1e-9 * Math.max(1, Math.abs(value)));
  };
  const visible = () => study.contenders.filter((c) => state.shown.has(c.name) && c.curves[state.knob].at.length);
  const address = () => (study.contenders.find((c) => c.name === study.subject)?.curves[state.knob].at[0] === null ? "" : `${state.knob}:${state.at[state.knob]}`);

  const rings = () => {
    const points = visible().map((c) => [c, here(c)]).filter(([c, i]) => i >= 0 && c.curves[state.knob].at[0] !== null);
    return { x: points.map(([c, i]) => along(c, state.x)[i]), y: points.map(([c, i]) => along(c, state.y)[i]) };
  };

  function traces() {
    const list = visible().map((c) => {
      const curve = c.curves[state.knob], y = along(c, state.y), bounds = study.metrics[state.y] && curve[state.y];
      const spread = bounds && bounds[1].some((low, i) => low !== null && bounds[2][i] > low);
      return {
        type: "scatter", name: c.name, x: along(c, state.x), y, mode: study.knobs[state.knob].slides && y.length > 1 ? "lines+markers" : "markers",
        line: { color: c.color, dash: c.dash, width: c.width }, marker: { symbol: c.symbol, size: c.width > 2 ? 10 : 8, color: c.color },
        error_y: spread ? { type: "data", symmetric: false, array: bounds[2].map((high, i) => high - y[i]), arrayminus: bounds[1].map((low, i) => y[i] - low),
          color: c.color, thickness: 1, width: 3 } : { visible: false },
        customdata: curve.at, hovertemplate: `<b>${c.name}</b><br>${axisLabel(state.x)} %{x}<br>${axisLabel(state.y)} %{y}<br>${study.knobs[state.knob].label} %{customdata}<extra></extra>`,
      };
    });
    list.push({ type: "scatter", name: "current point", mode: "markers", hoverinfo: "skip", ...rings(),
      marker: { symbol: "circle-open", size: 18, color: ink, line: { width: 2.5, color: ink } } });
    if (state.guess && state.y === study.quality) list.push({ type: "scatter", name: "your guess", mode: "markers", x: [state.guess[state.x]], y: [state.guess.value],
      marker: { symbol: "star", size: 15, color: ink } });
    return list;
  }

  const axis = (name) => ({ title: { text: axisLabel(name), standoff: 8 }, gridcolor: grid, linecolor: grid, zerolinecolor: grid, automargin: true });
  const layout = () => ({
    height: 400, margin: { l: 56, r: 10, t: 10, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 13 },
    xaxis: axis(state.x), yaxis: axis(state.y), showlegend: false, hovermode: "closest",
  });

  function sentence() {
    const knob = study.knobs[state.knob], more = study.metrics[state.y]?.more_is_better !== false;
    const order = visible().map((c) => [c.name, along(c, state.y)[here(c)]]).filter(([, value]) => value !== undefined && value !== null).sort((a, b) => (more ? b[1] - a[1] : a[1] - b[1]));
    return `${axisLabel(state.y)} against ${axisLabel(state.x)}. At ${knob ? `${knob.label} ${show(knob.grid[state.at[state.knob]])}` : "its only point"}, best first: ` +
      order.map(([name, value]) => `${name} ${digits(state.y, value)}`).join("; ") + ".";
  }

  function readout() {
    const names = [study.cost, study.quality, ...Object.keys(study.metrics).filter((name) => name !== study.cost && name !== study.quality)].slice(0, 7);
    const table = find(".readout"), knob = study.knobs[state.knob];
    table.caption.textContent = `Measured at ${knob.label} = ${show(knob.grid[state.at[state.knob]])}` +
      (study.knobs.length > 1 ? "; the other knobs stand at their defaults" : "") + ". In brackets: 90 % interval over replicas.";
    table.tHead.replaceChildren(element("tr", {}, element("th", { scope: "col" }, "Contender"), ...names.map((name) => element("th", { scope: "col" }, study.metrics[name].label))));
    table.tBodies[0].replaceChildren(...visible().map((c) => {
      const i = here(c), curve = c.curves[state.knob];
      return element("tr", { className: c.name === study.subject ? "subject" : "" }, element("td", {}, c.name), ...names.map((name) => {
        if (i < 0) return element("td", {}, "not measured here");
        const [mean, low, high] = curve[name].map((values) => values[i]);
        return element("td", {}, digits(name, mean) + (name === study.quality && high > low ? ` [${digits(name, low)}, ${digits(name, high)}]` : ""));
      }));
    }));
  }

  function words() {
    study.knobs.forEach((knob, k) => {
      const input = document.getElementById(`knob-${k}`), value = show(knob.grid[state.at[k]]);
      input.value = state.at[k];
      input.setAttribute("aria-valuetext", value);
      input.parentElement.querySelector("output").textContent = value;
    });
    const changed = study.knobs.map((knob, k) => [knob.name, knob.grid[state.at[k]]]);
    find(".state code").textContent = `explore("${root.dataset.command}"${changed.map(([name, value]) => `, ${name}=${value}`).join("")})`;
    if (!state.open) ask();
  }

  // A knob that the paper's contender lacks leaves it where it is: at the default of its own first knob.
  const frameOf = (table) => table[address() || study.knobs.map((knob, k) => `${k}:${knob.grid.indexOf(knob.default)}`).find((key) => key in table) || ""];

  // Charts of which one is shown at a time. Those not drawn yet are drawn in idle time, out of sight.
  function gallery(node, build) {
    const kept = new Map(), shelf = element("div", { className: "shelf", ariaHidden: "true" });
    node.after(shelf);
    const draw = (key) => {
      if (!kept.has(key)) {
        const { data, layout: look } = build(key), drawn = shelf.appendChild(element("div"));
        shelf.style.width = `${node.clientWidth}px`;
        Plotly.newPlot(drawn, data, { ...look, width: undefined, autosize: true }, { ...config, responsive: false });
        kept.set(key, drawn);
        if (kept.size > 80) kept.delete(kept.keys().next().value);
      }
      return kept.get(key);
    };
    const fit = () => { const chart = node.firstElementChild; if (chart && node.clientWidth && chart._fullLayout.width !== node.clientWidth) Plotly.Plots.resize(chart); };
    addEventListener("resize", fit);
    return {
      show(key) {
        const drawn = draw(key);
        if (node.firstElementChild !== drawn) { node.firstElementChild?.remove(); node.append(drawn); }
        fit();
        node.setAttribute("aria-label", workbench.describe(drawn));
        workbench.refresh(node.parentElement);
      },
      prepare(keys) {
        const waiting = keys.filter((key) => !kept.has(key)).slice(0, 80);
        const next = () => { if (waiting.length) { draw(waiting.shift()); workbench.idle(next); } else root.dataset.ready = "yes"; };
        workbench.idle(next);
      },
    };
  }

  const pictures = gallery(chart.picture, (key) => {
    const [look, ...data] = key.split(",").map((i) => study.parts[i]);
    return { data, layout: look };
  });

  function drawPicture() {
    if (!Object.keys(study.frames).length) return;
    const frame = frameOf(study.frames), missing = figure.picture.querySelector(".missing");
    figure.picture.hidden = false;
    missing.hidden = Boolean(frame);
    chart.picture.hidden = !frame;
    if (frame) pictures.show(frame.join(",")); else missing.textContent = "No picture is stored at this value.";
  }

  const courses = gallery(chart.series, (key) => {
    const [name, at] = JSON.parse(key), [x, y] = study.series[name][at];
    return { data: [{ type: "scatter", mode: "lines", x, y, name, line: { color: "#d55e00", width: 2 } }],
      layout: { ...layout(), height: 220, xaxis: { ...axis(state.x), title: { text: "index" } }, yaxis: { ...axis(state.y), title: { text: name } } } };
  });

  function drawSeries() {
    const select = document.getElementById("series-name"), table = study.series[select.value];
    figure.series.hidden = !table || !frameOf(table);
    if (!figure.series.hidden) courses.show(JSON.stringify([select.value, Object.keys(table).find((key) => table[key] === frameOf(table))]));
  }

  const settle = () => { chart.curve.setAttribute("aria-label", sentence()); workbench.refresh(figure.curve); };

  function redraw() {
    if (!state.open) return null;
    figure.curve.hidden = false;
    return Plotly.react(chart.curve, traces(), layout(), config).then(settle);
  }

  // Moves the drawn rings themselves and hides those not needed; plotly's own redraw is the fallback where more are needed.
  function moveRings() {
    if (!state.open) return null;
    const { x, y } = rings(), last = visible().length, drawn = chart.curve, full = drawn._fullData[last], { xaxis, yaxis } = drawn._fullLayout;
    const marks = drawn.querySelectorAll(`.trace${full.uid} path.point`);
    if (marks.length < x.length || marks.length !== drawn.calcdata[last].length || [...x, ...y].includes(null)) return Plotly.restyle(drawn, { x: [x], y: [y] }, [last]).then(settle);
    Object.assign(drawn.data[last], { x, y });
    Object.assign(full, { x, y });
    marks.forEach((mark, i) => {
      Object.assign(drawn.calcdata[last][i], { x: x[i], y: y[i] });
      mark.style.display = i < x.length ? "" : "none";
      if (i < x.length) mark.setAttribute("transform", `translate(${xaxis.c2p(x[i], true)},${yaxis.c2p(y[i], true)})`);
    });
    settle();
    return null;
  }

  function slide(k, index) {
    const other = k !== state.knob;
    state.at = state.at.map((i, j) => (j === k ? index : study.knobs[j].grid.indexOf(study.knobs[j].default)));
    state.knob = k;
    if (other && study.metrics[state.x] === undefined) state.x = study.cost;
    state.full = state.full || other;
    if (state.waiting) return; // the latest value wins: one redraw a frame
    state.waiting = true;
    requestAnimationFrame(() => {
      state.waiting = false;
      words();
      readout();
      drawPicture();
      drawSeries();
      if (state.full) axes();
      const drawn = state.full ? redraw() : moveRings();
      state.full = false;
      Promise.resolve(drawn).then(() => root.dispatchEvent(new CustomEvent("redrawn")));
    });
  }

  function ask() {
    const knob = study.knobs[state.knob];
    find(".predict label").textContent = `At ${knob.label} = ${show(knob.grid[state.at[state.knob]])}, what is the ${axisLabel(study.quality)} of ${study.subject}?`;
  }

  function open(guess) {
    const subject = study.contenders.find((c) => c.name === study.subject), i = subject ? here(subject) : -1;
    if (guess !== null && i >= 0) {
      const curve = subject.curves[state.knob], measured = curve[study.quality][0][i];
      state.guess = { value: guess, ...Object.fromEntries(Object.keys(study.metrics).map((name) => [name, curve[name][0][i]])), [study.knobs[state.knob].name]: curve.at[i] };
      find(".guessed").textContent = `You said ${show(guess)}; measured: ${digits(study.quality, measured)}, a difference of ${show(guess - measured)}.`;
    }
    state.open = true;
    find(".predict").remove();
    find(".values").hidden = false;
    redraw();
  }

  function axes() {
    for (const [id, key] of [["axis-x", "x"], ["axis-y", "y"]]) {
      const select = document.getElementById(id), names = Object.keys(study.metrics).concat(key === "x" ? [study.knobs[state.knob].name] : []);
      select.replaceChildren(...names.map((name) => element("option", { value: name, selected: name === state[key] }, axisLabel(name))));
      select.onchange = () => { state[key] = select.value; redraw(); };
    }
  }

  study.knobs.forEach((knob, k) => {
    const input = element("input", { type: "range", id: `knob-${k}`, min: 0, max: knob.grid.length - 1, step: 1, value: state.at[k] });
    input.addEventListener("input", () => slide(k, Number(input.value)));
    find(".knobs").append(element("div", { className: "knob" }, element("output", { htmlFor: `knob-${k}` }), element("label", { htmlFor: `knob-${k}` }, knob.label), input,
      element("div", { className: "ends", ariaHidden: "true" }, element("span", {}, show(knob.grid[0])), element("span", {}, show(knob.grid.at(-1))))));
  });
  for (const c of study.contenders) {
    const box = element("input", { type: "checkbox", checked: state.shown.has(c.name) });
    box.addEventListener("change", () => { state.shown[box.checked ? "add" : "delete"](c.name); readout(); redraw(); });
    const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg"), line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const dashes = { solid: "", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3", longdash: "11 4", longdashdot: "11 3 2 3" };
    for (const [key, value] of Object.entries({ x1: 0, x2: 26, y1: 6, y2: 6, stroke: c.color, "stroke-width": c.width, "stroke-dasharray": dashes[c.dash] ?? c.dash.replace(/px/g, "") })) line.setAttribute(key, value);
    for (const [key, value] of Object.entries({ width: 26, height: 12, "aria-hidden": "true" })) swatch.setAttribute(key, value);
    swatch.append(line);
    find(".contenders").append(element("label", { title: c.note || "" }, box, swatch, element("span", {}, c.name, " ", element("small", {}, c.role))));
  }
  const series = document.getElementById("series-name");
  series.replaceChildren(...Object.keys(study.series).map((name) => element("option", { value: name }, name)));
  series.addEventListener("change", drawSeries);
  find(".predict").addEventListener("submit", (event) => { event.preventDefault(); open(Number(document.getElementById("guess").value)); });
  find(".predict .plain").addEventListener("click", () => open(null));
  addEventListener("beforeprint", () => { if (!state.open) open(null); });
  axes(); words(); readout(); drawPicture(); drawSeries();
  pictures.prepare([...new Set(Object.values(study.frames).map((frame) => frame.join(",")))]);
  if (series.value) courses.prepare(Object.keys(study.series[series.value]).map((at) => JSON.stringify([series.value, at])));
})();
