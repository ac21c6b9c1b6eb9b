// Sorts tables of results, those with a column of numbers, by a click on a head. Numbers are compared as numbers: "59.18 ± 0.31" by its mean,
// "70.7 k" and "0.11 M" with their units; what is undefined ("–") is the least.
(() => {
  const UNITS = { k: 1e3, M: 1e6, G: 1e9 };
  const number = (text) => {
    const found = /^([+-]?[\d,]*\.?\d+)\s*(?:([kMG])\b|%|±|$|\s)/.exec(text.trim().replace("−", "-"));
    return found ? Number(found[1].replaceAll(",", "")) * (UNITS[found[2]] ?? 1) : null;
  };
  Tablesort.extend(
    "quantity",
    (text) => number(text) !== null,
    (a, b) => (number(b) ?? -Infinity) - (number(a) ?? -Infinity) || 0,
  );
  for (const table of document.querySelectorAll("article table:not([class])")) {
    const rows = table.tBodies[0]?.rows ?? [];
    if (rows.length > 2 && rows[0].querySelector("td[style*=right]")) new Tablesort(table);
  }
})();
