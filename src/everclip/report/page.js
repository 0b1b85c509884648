"use strict";
document.documentElement.classList.add("js");
function save(name, address) {
  const link = document.createElement("a");
  link.href = address; link.download = name; document.body.append(link); link.click(); link.remove();
}
for (const button of document.querySelectorAll("button.save-svg")) {
  button.addEventListener("click", () => {
    const copy = button.closest("figure").querySelector(".wide svg").cloneNode(true);
    const style = document.createElementNS("http://www.w3.org/2000/svg", "style");
    // Other programs know no CSS variables: write the light colours, their fallbacks, in their place.
    style.textContent = document.getElementById("figure-css").textContent.replace(/var\(--\w+, ([^)]+)\)/g, "$1");
    copy.prepend(style);
    const text = new XMLSerializer().serializeToString(copy);
    const address = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    save(button.dataset.name, address);
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  });
}
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const key = (row, i) => row.cells[i].dataset.v ?? row.cells[i].textContent;
  heads.forEach((head, i) => {
    // Not a <button>: browsers leave those out of the header that print repeats on each page.
    const button = document.createElement("span");
    button.setAttribute("role", "button"); button.tabIndex = 0;
    button.append(...head.childNodes); head.append(button);
    button.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); button.click(); }
    });
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const compare = (a, b) => head.dataset.kind === "text"
        ? key(a, i).localeCompare(key(b, i), undefined, { numeric: true }) : key(a, i) - key(b, i);
      body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
    });
  });
  const box = table.closest("section").querySelector("input.search");
  const count = table.closest("section").querySelector(".count");
  box.addEventListener("input", () => {
    const word = box.value.trim().toLowerCase();
    let shown = 0;
    for (const row of body.rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(word);
      shown += !row.hidden;
    }
    count.textContent = word ? shown + " of " + body.rows.length : "";
  });
}
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", () => {
    navigator.clipboard.writeText(button.previousElementSibling.textContent).then(() => {
      button.textContent = "copied";
    });
  });
}
