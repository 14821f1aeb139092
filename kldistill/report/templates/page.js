"use strict";
// Tables of class "sortable": the buttons in the headings sort the rows, and aria-sort says how. Rows without a value
// stay at the end whichever way the others are sorted.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  for (const button of table.querySelectorAll("thead button")) {
    button.addEventListener("click", () => {
      const heading = button.closest("th");
      const at = heading.cellIndex;
      const isNumber = heading.dataset.sort === "number";
      const before = heading.getAttribute("aria-sort");
      const down = before ? before === "ascending" : isNumber;
      const key = (row) => {
        const cell = row.cells[at];
        if (!isNumber) return cell.textContent;
        return "value" in cell.dataset ? Number(cell.dataset.value) : null;
      };
      const compare = (one, other) => {
        if (one.key === null || other.key === null) return (one.key === null) - (other.key === null);
        const sign = isNumber ? one.key - other.key : one.key.localeCompare(other.key);
        return down ? -sign : sign;
      };
      const rows = Array.from(body.rows, (row) => ({ row, key: key(row) }));
      rows.sort(compare);
      body.append(...rows.map((entry) => entry.row));
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      document.getElementById("announce").textContent =
        `Sorted by ${button.textContent}, ${down ? "descending" : "ascending"}.`;
    });
  }
}
// A box that is narrower than its table says that it scrolls.
const tell = () => {
  for (const hint of document.querySelectorAll(".scrolls")) {
    const box = hint.nextElementSibling;
    hint.hidden = box.scrollWidth <= box.clientWidth + 1;
  }
};
tell();
// Its size changes with the window, with what is folded out, and with the letters: none of that has to be known here.
const sizes = new ResizeObserver(tell);
for (const box of document.querySelectorAll(".scrolls + *")) for (const each of [box, ...box.children]) sizes.observe(each);
