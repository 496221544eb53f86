// Elements without markup: nothing that comes from elsewhere is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Attributes that are functions listen, `class` and `text` are what they say, others are set. */
export function h(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name || "div");
  if (classes.length) element.classList.add(...classes);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(key, value);
    else if (key === "text") element.textContent = value;
    else if (key === "class") element.classList.add(...value.split(" ").filter(Boolean));
    else if (key === "data") Object.assign(element.dataset, value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

/** An icon of straight lines, for the eye alone. */
export function icon(path, size = 16) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("width", size);
  svg.setAttribute("height", size);
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon");
  const line = document.createElementNS(SVG, "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

export const ICONS = {
  wall: "M2.5 3h4.5v4.5H2.5zM9 3h4.5v4.5H9zM2.5 9.5h4.5V14H2.5zM9 9.5h4.5V14H9z",
  fleet: "M2.5 3.5h11v3.5h-11zM2.5 9.5h11V13h-11zM5 5.25h.01M5 11.25h.01",
  back: "M9.5 3.5 5 8l4.5 4.5",
  out: "M6 3H3v10h3M7 8h6.5M11 5.5 13.5 8 11 10.5",
  mask: "M3 5.5 7.5 2.5 13.5 6l-2 7H4.5zM4 12 12 5M3.5 8.5l5-4.5M8 13l4.8-4.2",
  zone: "M3 5.5 7.5 2.5 13.5 6l-2 7H4.5z",
  line: "M2.5 13 13.5 3M6 6.5l4 4",
  trash: "M3 4.5h10M6.5 4.5v-2h3v2M4.5 4.5l.6 9h5.8l.6-9",
  undo: "M6 4 3 7l3 3M3 7h6a3.5 3.5 0 0 1 0 7H7",
  previous: "M10 3.5 5.5 8l4.5 4.5",
  next: "M6 3.5 10.5 8 6 12.5",
};

/** Set the text only where it changed: most updates change nothing. */
export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

/** Replace the children. */
export function fill(element, ...children) {
  element.replaceChildren(...children.filter(Boolean));
}

/** Tell people who listen to the page. */
export function say(words) {
  const place = document.getElementById("say");
  place.textContent = "";
  requestAnimationFrame(() => { place.textContent = words; });
}
