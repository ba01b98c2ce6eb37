"use strict";
// Sorting and filtering of the scoreboard. The state lives in the address: #filter=token&job=draft&sort=verdict&dir=desc
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

  const save = document.getElementById("save");
  save.addEventListener("click", async () => {
    const packed = Uint8Array.from(atob(document.getElementById("rows").textContent), (c) => c.charCodeAt(0));
    const lines = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([await new Response(lines).text()], { type: "application/jsonl" }));
    link.download = "mintage-results.jsonl";
    link.click();
    URL.revokeObjectURL(link.href);
  });

  form.hidden = save.hidden = false;
  show();
  read();
})();
