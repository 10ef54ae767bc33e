const card = document.getElementById("card");
const make = (tag, text, parent, name) => {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (name) made.className = name;
  parent.appendChild(made);
  return made;
};
function show(dot) {
  const point = FRONT.points[dot.dataset.n];
  document.querySelectorAll(".point.on").forEach((other) => other.classList.remove("on"));
  dot.classList.add("on");
  card.replaceChildren();
  make("b", point.title, card);
  make("pre", point.command, card);
  if (point.removed.length) make("p", "Blocks removed: " + point.removed.join(", "), card, "soft");
  const list = make("div", "", card, "widths");
  for (const [name, size] of Object.entries(FRONT.sizes)) {
    const row = make("div", "", list, "w"), kept = point.widths[name];
    make("span", name, row).title = name;
    make("b", "", make("i", "", row)).style.width = (100 * kept) / size + "%";
    make("span", kept + " / " + size, row);
  }
}
async function copy(dot) {
  show(dot);
  const text = FRONT.points[dot.dataset.n].command;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", "", document.body);
    area.value = text;
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  make("p", "Copied.", card, "soft");
}
document.querySelectorAll(".point").forEach((dot) => {
  dot.addEventListener("mouseenter", () => show(dot));
  dot.addEventListener("focus", () => show(dot));
  dot.addEventListener("click", () => copy(dot));
  dot.addEventListener("keydown", (event) => event.key === "Enter" && copy(dot));
});
