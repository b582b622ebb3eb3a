"use strict";
// Copy buttons on every page; filters, numbers and sorting on the page of the zoo. Without script every table is complete.
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const line = button.dataset.line;
    try {
      await navigator.clipboard.writeText(line);
    } catch {
      const area = document.createElement("textarea");
      area.value = line;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
}

const table = document.getElementById("zoo");
if (table) {
  const form = document.getElementById("filters");
  const numbers = JSON.parse(document.getElementById("numbers").textContent);
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const cell = (row, what) => row.querySelector(`[data-what="${what}"]`);
  const text = (row, what) => (what === "model" ? row.dataset.id : cell(row, what).textContent);

  function show() {
    const wanted = new FormData(form);
    let count = 0;
    for (const row of rows) {
      const fits = ["method", "network", "data", "licence", "status"].every((what) => !wanted.get(what) || text(row, what) === wanted.get(what));
      row.hidden = !fits || !row.textContent.toLowerCase().includes(wanted.get("text").trim().toLowerCase());
      count += !row.hidden;
      const [published, measured] = numbers[row.dataset.id][wanted.get("metric")] || ["", ""];
      cell(row, "published").textContent = published;
      cell(row, "measured").textContent = measured;
    }
    document.getElementById("count").textContent = `${count} of ${rows.length} models`;
  }

  function sort(header) {
    const what = header.dataset.column;
    const numeric = what === "published" || what === "measured";
    const before = header.getAttribute("aria-sort");
    const direction = before ? (before === "ascending" ? "descending" : "ascending") : numeric ? "descending" : "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const key = (row) => (numeric ? parseFloat(text(row, what)) : text(row, what));
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (numeric && (Number.isNaN(x) || Number.isNaN(y))) return Number.isNaN(x) - Number.isNaN(y); // empty cells last
      return sign * (numeric ? x - y : x.localeCompare(y));
    };
    body.append(...rows.sort(order));
  }

  for (const header of table.tHead.querySelectorAll("[data-column]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    button.addEventListener("click", () => sort(header));
    header.replaceChildren(button);
  }
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  show();
}
