// The page is built from elements and text only, never from markup: names of jobs and tensors are other people's.

export const byId = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

export function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

export const number = (text, className = "") => element("td", { className: `number ${className}`, textContent: text });

// Terms and what they say, into a <dl>.
export function describe(list, facts) {
  list.replaceChildren(
    ...facts.map(([term, said, className = ""]) =>
      element("div", {}, element("dt", { textContent: term }), element("dd", { className, textContent: said })),
    ),
  );
}

// Rows with a button that picks one of them. The focus stays where it was across updates.
export function pickRows(body, items, picked, pick, cells) {
  const focused = body.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  body.replaceChildren(
    ...items.map((item) => {
      const button = element("button", { type: "button", textContent: item.name, title: item.name });
      button.dataset.key = item.name;
      button.setAttribute("aria-pressed", String(item.name === picked));
      const row = element("tr", { className: "pickable" }, element("th", { scope: "row" }, button), ...cells(item));
      row.classList.toggle("picked", item.name === picked);
      row.addEventListener("click", () => pick(item.name));
      return row;
    }),
  );
  if (focused !== undefined) [...body.querySelectorAll("button")].find((b) => b.dataset.key === focused)?.focus();
}
