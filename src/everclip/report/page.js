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
    style.textContent = document.getElementById("figure-css").textContent;
    copy.prepend(style);
    const text = new XMLSerializer().serializeToString(copy).replace(/var\(--\w+, ([^)]+)\)/g, "$1");
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
      const text = head.dataset.kind === "text";
      const compare = (a, b) => {
        const [left, right] = [key(a, i), key(b, i)];
        // What is unknown stays at the end, whichever way the others go.
        if (!text && (left === "" || right === "")) return sign * ((left === "") - (right === ""));
        return text ? left.localeCompare(right, undefined, { numeric: true }) : left - right;
      };
      body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
    });
  });
  const finder = table.closest(".finder"), box = finder.querySelector("input.search");
  const count = finder.querySelector(".count");
  box?.addEventListener("input", () => {
    const word = box.value.trim().toLowerCase();
    let shown = 0;
    for (const row of body.rows) {
      row.hidden = !row.textContent.toLowerCase().includes(word);
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
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
