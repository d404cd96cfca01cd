"use strict";
// What every page shares: the theme, charts drawn from embedded figures, the table behind each chart, search and filters.

const workbench = { config: { responsive: true, displaylogo: false, displayModeBar: false }, many: 300 };

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch (error) { /* private windows keep no choice */ }
});

workbench.element = (name, attributes = {}, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) key in node ? (node[key] = value) : node.setAttribute(key, value);
  node.append(...children);
  return node;
};

workbench.show = (value) => {
  if (typeof value !== "number") return value === null || value === undefined ? "–" : String(value);
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
};

// The numbers of a drawn chart as rows, trace by trace; a heat map gives its cells.
workbench.rows = (chart) => {
  const rows = [];
  for (const trace of chart._fullData || []) {
    if (trace.visible !== true || trace.hoverinfo === "skip" && trace.fill) continue;
    const name = trace.name || "";
    const z = trace.z;
    if (z && z.length) for (const [i, line] of Array.from(z).entries()) for (const [j, value] of Array.from(line.length === undefined ? [line] : line).entries())
      rows.push([name, trace.x ? trace.x[j] : j, trace.y ? trace.y[i] : i, Array.isArray(value) ? value.join(" ") : value]);
    else {
      const x = Array.from(trace.x || trace.labels || trace.theta || []), y = Array.from(trace.y || trace.values || trace.r || []);
      for (let i = 0; i < Math.max(x.length, y.length); i++) rows.push([name, x[i], y[i]]);
    }
    if (rows.length > workbench.many) break;
  }
  return rows;
};

workbench.table = (chart) => {
  const { element, show } = workbench, rows = workbench.rows(chart);
  const title = (axis) => chart.layout[axis]?.title?.text || axis[0];
  const head = ["series", title("xaxis"), title("yaxis"), "value"].slice(0, rows.reduce((most, row) => Math.max(most, row.length), 3));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows.slice(0, workbench.many).map((row) => element("tr", {}, ...row.map((value) => element("td", {}, show(value)))))));
  return rows.length > workbench.many ? [table, element("p", {}, `The first ${workbench.many} rows.`)] : [table];
};

// The alternative text of a chart, written from its numbers.
workbench.describe = (chart) => {
  const title = chart.layout.title?.text || "";
  const parts = (chart._fullData || []).filter((trace) => trace.visible === true).slice(0, 6).map((trace) => {
    const values = Array.from(trace.z || trace.y || trace.values || []).flatMap((value) => (value && value.length ? Array.from(value).flat() : value)).filter(Number.isFinite);
    if (!values.length) return trace.type;
    const least = values.reduce((a, b) => Math.min(a, b)), most = values.reduce((a, b) => Math.max(a, b));
    return `${trace.name && !/^trace \d+$/.test(trace.name) ? trace.name + ", " : ""}${trace.type} of ${values.length} values from ${workbench.show(least)} to ${workbench.show(most)}`;
  });
  return [title.replace(/<[^>]+>/g, " "), ...parts].filter(Boolean).join("; ");
};

workbench.refresh = (figure) => {
  const chart = figure.querySelector(".js-plotly-plot"), details = figure.querySelector("details.numbers");
  if (details && details.open && chart) details.lastElementChild.replaceChildren(...workbench.table(chart));
};

for (const details of document.querySelectorAll("details.numbers")) details.addEventListener("toggle", () => workbench.refresh(details.parentElement));

workbench.draw = (figure) => {
  const bundle = JSON.parse(figure.querySelector("script").textContent), chart = figure.querySelector(".plotly");
  const layout = { height: 420, ...bundle.layout, paper_bgcolor: "rgba(0,0,0,0)", autosize: true };
  delete layout.width;
  return Plotly.newPlot(chart, bundle.data, layout, workbench.config).then(() => {
    if (chart.getAttribute("aria-label") === "chart") chart.setAttribute("aria-label", workbench.describe(chart));
    workbench.refresh(figure);
  });
};

// Charts near the window are drawn first, the others in idle time, so that a page with thirty of them opens at once.
const undrawn = new Set(document.querySelectorAll("figure.plot"));
const drawOnce = (figure) => undrawn.delete(figure) && workbench.draw(figure);
const near = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => drawOnce(entry.target)), { rootMargin: "600px" });
undrawn.forEach((figure) => near.observe(figure));
workbench.idle = (later) => (window.requestIdleCallback ? requestIdleCallback(later) : setTimeout(later, 50));
const rest = () => { for (const figure of undrawn) { drawOnce(figure); return workbench.idle(rest); } };
addEventListener("load", () => workbench.idle(rest));
addEventListener("beforeprint", () => undrawn.forEach(drawOnce));

// Filters: a form names its table. Every word of its search must occur in a row's text, and what its lists choose must be among the row's keys.
// Without this script the forms stay hidden and the tables whole.
for (const form of document.querySelectorAll("form[data-filter]")) {
  const rows = [...document.querySelectorAll(`#${form.dataset.filter} tbody tr`)], texts = rows.map((row) => row.textContent.toLowerCase());
  const search = form.querySelector("input[type=search]"), choices = [...form.querySelectorAll("select")], output = form.querySelector("output");
  const apply = () => {
    const words = search ? search.value.toLowerCase().split(/\s+/).filter(Boolean) : [], wanted = choices.map((choice) => choice.value).filter(Boolean);
    let count = 0;
    rows.forEach((row, i) => {
      const keys = (row.dataset.key || "").split("|");
      row.hidden = !(words.every((word) => texts[i].includes(word)) && wanted.every((key) => keys.includes(key)));
      count += !row.hidden;
    });
    output.textContent = `${count} of ${rows.length}`;
  };
  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  if (search?.value) apply();
  for (const link of document.querySelectorAll(`[data-search="${form.dataset.filter}"]`)) link.addEventListener("click", () => { search.value = link.textContent; apply(); });
}

// Long lines scroll inside: reachable by keyboard.
for (const pre of document.querySelectorAll("pre:not([tabindex])")) pre.tabIndex = 0;
