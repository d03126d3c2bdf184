// Tables sort by a click on a header, or Enter on it: upwards, downwards, and back to the first
// order. Numbers sort as numbers; what is not known stays last. Without scripts they are plain.
(() => {
  const unknown = (text) => text === "" || text === "–";
  const number = (text) => {
    const found = text.replace(/−/g, "-").replace(/,(?=\d{3})/g, "")
      .match(/^[±\s]*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)/i);
    return found ? Number(found[1]) : NaN;
  };
  const told = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.sort ?? cell.textContent.trim();
  };

  const order = (rows, column, numeric, sign) => {
    const known = rows.filter((row) => !unknown(told(row, column)));
    const asNumbers = numeric && known.every((row) => !Number.isNaN(number(told(row, column))));
    const compare = asNumbers
      ? (a, b) => number(a) - number(b)
      : (a, b) => a.localeCompare(b, "en", { numeric: true });
    known.sort((a, b) => sign * compare(told(a, column), told(b, column)));
    return [...known, ...rows.filter((row) => unknown(told(row, column)))];
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
