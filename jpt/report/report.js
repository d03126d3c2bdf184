// A click (or Enter) on a table header sorts ascending, descending, then in the original order.
// Numbers sort numerically, unknown values last.
(() => {
  const unknown = (text) => text === "" || text === "–";
  const number = (text) => {
    const found = text.replace(/−/g, "-").replace(/,(?=\d{3})/g, "")
      .match(/^[±\s]*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)/i);
    return found ? Number(found[1]) : NaN;
  };
  const textAt = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.sort ?? cell.textContent.trim();
  };

  const order = (rows, column, numeric, sign) => {
    const known = rows.filter((row) => !unknown(textAt(row, column)));
    const asNumbers = numeric && known.every((row) => !Number.isNaN(number(textAt(row, column))));
    const compare = asNumbers
      ? (a, b) => number(a) - number(b)
      : (a, b) => a.localeCompare(b, "en", { numeric: true });
    known.sort((a, b) => sign * compare(textAt(a, column), textAt(b, column)));
    return [...known, ...rows.filter((row) => unknown(textAt(row, column)))];
  };

  for (const table of document.querySelectorAll("table")) {
    const body = table.tBodies[0];
    const first = [...body.rows];
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    if (first.length < 2) continue;
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        for (const each of heads) each.removeAttribute("aria-sort");
        const after = { null: "ascending", ascending: "descending" }[before];
        if (after) head.setAttribute("aria-sort", after);
        const sign = after === "descending" ? -1 : 1;
        const numeric = head.classList.contains("number");
        body.append(...(after ? order(first, column, numeric, sign) : first));
      });
    });
  }
})();
