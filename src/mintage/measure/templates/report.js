"use strict";
// Sorting and filtering of the scoreboard, and unfolding of what is behind it. The state lives in the address:
// #filter=token&job=draft&sort=verdict&dir=desc, or #method-draft-ppd. Texts are placed as texts, never as markup;
// only the drawings are markup, made and escaped where the page was written.
(() => {
  const table = document.getElementById("scoreboard");
  const form = document.getElementById("controls");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const numeric = new Set(["measured", "baseline", "peer", "verdict"]);
  const choices = ["job", "status", "verdict"];
  const state = { filter: "", job: "", status: "", verdict: "", sort: "", dir: "asc" };

  const text = new Map(rows.map((row) => [row, row.textContent.toLowerCase().replace(/\s+/g, " ")]));

  function fits(row) {
    const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
    return words.every((word) => text.get(row).includes(word))
      && choices.every((name) => !state[name] || row.dataset[name] === state[name]);
  }

  function sorted() {
    const column = heads.findIndex((head) => head.dataset.key === state.sort);
    if (column < 0) return rows;
    const sign = state.dir === "desc" ? -1 : 1;
    const value = (row) => row.cells[column].dataset.sort;
    const compare = numeric.has(state.sort)
      ? (a, b) => Number(a) - Number(b)
      : (a, b) => a.localeCompare(b, "en", { numeric: true });
    // Lines without a value stay last in either direction.
    return [...rows].sort((a, b) => {
      const [first, second] = [value(a), value(b)];
      if (first === "" || second === "") return (first === "") - (second === "");
      return sign * compare(first, second);
    });
  }

  function show() {
    body.append(...sorted());
    let count = 0;
    for (const row of rows) {
      row.hidden = !fits(row);
      count += !row.hidden;
    }
    for (const head of heads) {
      const active = head.dataset.key === state.sort;
      if (active) head.setAttribute("aria-sort", state.dir === "desc" ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    document.getElementById("shown").textContent = `${count} of ${rows.length}`;
    document.getElementById("none-shown").hidden = count > 0;
    document.getElementById("filter").value = state.filter;
    for (const name of choices) document.getElementById(name).value = state[name];
  }

  function read() {
    if (location.hash && !location.hash.includes("=")) return;  // a link to a section
    const given = new URLSearchParams(location.hash.slice(1));
    for (const name of Object.keys(state)) state[name] = given.get(name) ?? (name === "dir" ? "asc" : "");
    show();
  }

  function change(values) {
    Object.assign(state, values);
    const kept = Object.entries(state).filter(([name, value]) => value && (name !== "dir" || state.sort));
    history.replaceState(null, "", "#" + (kept.length ? new URLSearchParams(kept) : "board"));
    show();
  }

  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const key = head.dataset.key;
      if (state.sort !== key) change({ sort: key, dir: "asc" });
      else if (state.dir === "asc") change({ dir: "desc" });
      else change({ sort: "", dir: "asc" });
    });
  }
  form.addEventListener("input", (event) => change({ [event.target.id]: event.target.value }));
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    change({ filter: "", job: "", status: "", verdict: "", sort: "", dir: "asc" });
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", read);

  // -- unfolding

  async function unpacked(text) {
    const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  function make(tag, attributes, ...children) {
    const names = ["svg", "line", "path", "circle"];
    const element = names.includes(tag)
      ? document.createElementNS("http://www.w3.org/2000/svg", tag)
      : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== ""));
    return element;
  }

  const small = (text, kind = "") => text === "" ? "" : make("small", { class: kind }, text);
  const none = () => make("span", { class: "none" }, "–");
  const parts = (name) => name.split(/(?<=[+:,])/).flatMap((part) => [part, make("wbr", {})]);  // where a spec may break
  const pairs = (values) => values.map(([value, name]) =>
    make("span", { class: "pair" }, make("b", {}, value), " ", make("small", {}, ...parts(name))));

  function peers(values) {
    const [first, rest] = [pairs(values.slice(0, 6)), values.slice(6)];
    if (!rest.length) return first;
    return [...first, make("details", {}, make("summary", {}, `${rest.length} more`), ...pairs(rest))];
  }

  function gauge(row, method) {
    const [value, low, high, side, baselines, others] = row.gauge;
    const told = [`${method} ${row.here}`, row.bounds, row.up ? "higher is better" : "lower is better"];
    const size = { viewBox: "0 0 148 22", width: 148, height: 22 };
    const svg = make("svg", { ...size, class: "gauge", role: "img", "aria-label": told.filter(Boolean).join("; ") });
    const line = (kind, x1, x2, y1, y2) => make("line", { class: kind, x1, x2, y1, y2 });
    svg.append(line("rail", 1, 147, 11, 11));
    svg.append(make("path", { class: "peer", d: others.map((x) => `M${x} 7v8`).join("") }));
    svg.append(...baselines.map((x) => line("base", x, x, 2, 20)));
    if (low < high) svg.append(line(`span ${side}`, low, high, 11, 11));
    svg.append(make("circle", { class: `dot ${side}`, cx: value, cy: 11, r: 4 }));
    return svg;
  }

  function verdict(text) {
    const kind = text.replaceAll(" ", "-");
    return make("span", { class: `verdict ${kind}` }, make("i", { "aria-hidden": "true" }), text);
  }

  function place([letter, machine, model, data]) {
    const link = letter && make("a", { class: "letter", href: `#machine-${letter}`, title: machine }, letter);
    return make("div", {}, link, link && " ", model, small(data));
  }

  function lines(row, method) {
    const cell = (label, kind, ...children) => make("td", { "data-label": label, class: kind }, ...children);
    const read = [make("span", { class: "reading" }, row.here), " ", row.bounds && make("span", { class: "bounds" }, row.bounds)];
    const direction = row.up ? "↑ higher is better" : "↓ lower is better";
    const claim = row.claim && small(row.claim, "tested");
    const [time, commit, command] = row.run;
    const fine = row.settings.flatMap(([name, value]) => [make("span", {}, make("i", {}, name), ` ${value}`), " "]);
    return make("tbody", {},
      make("tr", {},
        make("th", { scope: "row" }, row.metric, " ", small(direction)),
        cell("Measured here", "c-measured", make("div", {}, ...read, " ", small(`n = ${row.n}`, "count")), gauge(row, method)),
        cell("Baseline", "", ...(row.baseline.length ? pairs(row.baseline) : [none()])),
        cell("Peers", "peers", ...(row.peers.length ? peers(row.peers) : [none()])),
        cell("Verdict", "c-verdict", verdict(row.verdict), claim),
        cell("On", "", place(row.on))),
      make("tr", { class: "fine" }, make("td", { colspan: 6 },
        row.note && make("span", { class: "note" }, row.note),
        ...fine,
        time && make("time", {}, time), " ",
        commit && make("span", {}, commit), " ",
        command && make("code", {}, command))));
  }

  async function rowsOf(fold) {
    const rows = JSON.parse(await unpacked(fold.dataset.rows));
    const heads = ["Metric", "Measured here", "Baseline", "Peers", "Verdict", "On"];
    const head = make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text))));
    return make("table", { class: "results" }, head, ...rows.map((row) => lines(row, fold.dataset.method)));
  }

  async function drawingOf(fold) {
    const box = make("figure", {});
    box.innerHTML = await unpacked(fold.dataset.drawn);
    return box;
  }

  async function unfold(fold) {
    if (fold.dataset.unfolded) return;
    fold.dataset.unfolded = "yes";
    fold.append(await (fold.dataset.rows ? rowsOf(fold) : drawingOf(fold)));
    fold.dispatchEvent(new Event("unfolded"));
  }

  function openTarget() {
    const fold = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!fold?.matches("details.method, details.figure")) return;
    fold.open = true;
    fold.scrollIntoView();
  }

  for (const fold of document.querySelectorAll("details.method, details.figure")) {
    fold.addEventListener("toggle", () => fold.open && unfold(fold));
  }
  window.addEventListener("hashchange", openTarget);

  const save = document.getElementById("save");
  save.addEventListener("click", async () => {
    const text = await unpacked(document.getElementById("rows").textContent);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
    link.download = "mintage-results.jsonl";
    link.click();
    URL.revokeObjectURL(link.href);
  });

  form.hidden = save.hidden = false;
  show();
  read();
  openTarget();
})();
