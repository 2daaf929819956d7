"use strict";
(() => {
  const form = document.querySelector(".filters");
  const rows = [...document.querySelectorAll("tr[data-outcome]")];
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const toggles = [...form.querySelectorAll(".toggle")];
  const pressed = (kind) =>
    toggles.filter((t) => t.dataset[kind] && t.getAttribute("aria-pressed") === "true").map((t) => t.dataset[kind]);

  const apply = () => {
    const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const outcomes = pressed("outcome");
    const levels = pressed("level");
    let shown = 0;
    for (const row of rows) {
      const fits =
        (!outcomes.length || outcomes.includes(row.dataset.outcome)) &&
        (!levels.length || levels.includes(row.dataset.level)) &&
        words.every((word) => texts.get(row).includes(word));
      row.hidden = !fits;
      shown += fits;
    }
    for (const body of document.querySelectorAll(".clauses tbody")) {
      body.hidden = !body.querySelector("tr[data-outcome]:not([hidden])");
    }
    form.querySelector("output").textContent = `${shown} of ${rows.length}`;
    form.querySelector("[type=reset]").hidden = shown === rows.length;
    document.querySelector(".nothing").hidden = shown > 0;
  };

  const reset = () => {
    form.elements.text.value = "";
    for (const toggle of toggles) toggle.setAttribute("aria-pressed", "false");
    apply();
  };

  for (const toggle of toggles) {
    toggle.addEventListener("click", () => {
      toggle.setAttribute("aria-pressed", String(toggle.getAttribute("aria-pressed") !== "true"));
      apply();
    });
  }
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    reset();
  });
  for (const chip of document.querySelectorAll("[data-only]")) {
    chip.addEventListener("click", () => {
      reset();
      for (const toggle of toggles) {
        if (toggle.dataset.outcome === chip.dataset.only) toggle.setAttribute("aria-pressed", "true");
      }
      apply();
    });
  }

  // A link to a clause must find it, whatever is filtered out, and show what is known about it.
  const visit = () => {
    const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!row || !texts.has(row)) return;
    if (row.hidden) reset();
    row.querySelector("details").open = true;
    row.scrollIntoView({ block: "center" });
  };
  window.addEventListener("hashchange", visit);

  const copy = async (button) => {
    const text = button.dataset.copy;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const range = document.createRange();
      range.selectNodeContents(button.parentElement.querySelector("code"));
      const selection = getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      if (!document.execCommand("copy")) return;
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  };
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", () => copy(button));
  }

  // Paper has no disclosure triangles: everything that says why is printed, and folded again afterwards.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details.config:not([open])")];
    for (const details of folded) details.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const details of folded) details.open = false;
  });

  document.documentElement.classList.add("js");
  form.hidden = false;
  apply();
  visit();
})();
