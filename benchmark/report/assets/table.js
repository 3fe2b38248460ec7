"use strict";
// Tables that sort by a click on a column's name, and filter by words. Without it they are whole, in their own order.

const NUMBER = /^[-+]?(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d+)?(?=$|\s|%)/i;

function valueOf(row, column) {
  return row.cells[column].textContent.trim();
}

function sort(table, column, button) {
  const head = button.closest("th");
  const down = head.getAttribute("aria-sort") === "ascending";
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [row, valueOf(row, column)]);
  const numeric = rows.every(([, text]) => text === "" || NUMBER.test(text));
  const sign = down ? -1 : 1;
  rows.sort(([, a], [, b]) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // nothing stands last, in both directions
    const order = numeric
      ? parseFloat(a.replaceAll(",", "")) - parseFloat(b.replaceAll(",", ""))
      : a.localeCompare(b, "en", { numeric: true });
    return sign * order;
  });
  body.append(...rows.map(([row]) => row));
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
}

function filter(table, words, status) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !wanted.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  status.textContent = `${shown} of ${table.tBodies[0].rows.length} rows`;
}

function addFilter(table) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  const status = document.createElement("output");
  input.type = "search";
  input.autocomplete = "off";
  input.setAttribute("aria-controls", table.id);
  label.className = "filter";
  label.append("Filter ", input, " ", status);
  input.addEventListener("input", () => filter(table, input.value, status));
  filter(table, "", status);
  table.parentElement.before(label);
}

function addSort(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, column, button));
    head.append(button);
  });
}

for (const table of document.querySelectorAll("table")) {
  addSort(table);
  if ("long" in table.dataset) addFilter(table);
}
