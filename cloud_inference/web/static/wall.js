// The wall: every camera, at a glance.

import { h, text } from "./dom.js";
import { Facts } from "./facts.js";
import { counted } from "./format.js";
import { View } from "./view.js";

const CALM = new Set(["live", "idle"]);

class Tile {
  constructor(app, name) {
    this.name = name;
    this.view = new View(app, name);
    this.facts = new Facts(this.view.camera, app.store);
    const [site, camera] = name.split("/");
    this.link = h("a.tile-link", { href: `#/camera/${name}` }, h("span.site", { text: `${site} / ` }), camera);
    this.element = h("li.tile", { data: { camera: name } },
      this.view.frame, h("div.caption", {}, h("h2", {}, this.link)), this.facts.element);
  }

  update(now) {
    const { kind, title, more } = this.view.update(now);
    this.element.dataset.state = kind;
    this.link.setAttribute("aria-description", [title, more].filter(Boolean).join(". "));
    this.facts.update();
  }
}

export class Wall {
  constructor(app) {
    this.app = app;
    this.tiles = new Map();
    this.only = false;
    this.list = h("ul.wall", { "aria-label": "Cameras" });
    this.title = h("h1", { text: "Cameras" });
    this.summary = h("p.summary");
    this.all = h("button.tab", { type: "button", "aria-pressed": "true", click: () => this.#choose(false) }, "All");
    this.some = h("button.tab", { type: "button", "aria-pressed": "false", click: () => this.#choose(true) },
      "Needs attention");
    this.nothing = h("p.nothing");
    this.element = h("section.page", {},
      h("div.head", {}, h("div", {}, this.title, this.summary),
        h("div.tabs", { role: "group", "aria-label": "Which cameras" }, this.all, this.some)),
      this.list, this.nothing);
    this.near = new Set();
    this.seen = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        this.near[isIntersecting ? "add" : "delete"](target.dataset.camera);
      }
      app.watch();
    }, { rootMargin: "200px" });
    app.shaped = () => this.#shape();
    this.list.addEventListener("keydown", (event) => this.#arrows(event));
    this.sync();
  }

  /** Cameras whose pictures are wanted, and how. */
  get wanted() {
    return [...this.tiles.values()].filter((tile) => this.near.has(tile.name)).map((tile) => tile.view);
  }

  get views() { return [...this.tiles.values()].map((tile) => tile.view); }

  /** A tile for every camera, in the order of their names. */
  sync() {
    for (const [name, camera] of this.app.store.cameras) {
      if (this.tiles.has(name) || !camera.heardOf) continue;
      const tile = new Tile(this.app, name);
      this.tiles.set(name, tile);
      this.seen.observe(tile.element);
    }
    const ordered = [...this.tiles.keys()].sort(new Intl.Collator(undefined, { numeric: true }).compare);
    const elements = ordered.map((name) => this.tiles.get(name).element);
    if (elements.some((element, at) => this.list.children[at] !== element)) this.list.append(...elements);
    this.#shape();
  }

  #choose(only) {
    this.only = only;
    this.all.setAttribute("aria-pressed", String(!only));
    this.some.setAttribute("aria-pressed", String(only));
    this.update(performance.now());
  }

  /** All frames have the shape that most pictures have. */
  #shape() {
    const shapes = new Map();
    for (const view of this.views) if (view.shape) shapes.set(view.shape, (shapes.get(view.shape) || 0) + 1);
    const [most] = [...shapes].sort((a, b) => b[1] - a[1])[0] || [16 / 9];
    this.list.style.setProperty("--frame", Math.min(Math.max(most, 1.25), 1.9));
  }

  update(now) {
    this.sync();
    let calm = 0;
    let shown = 0;
    for (const tile of this.tiles.values()) {
      tile.update(now);
      const fine = CALM.has(tile.view.state);
      calm += fine;
      tile.element.hidden = this.only && fine;
      shown += !tile.element.hidden;
    }
    const total = this.tiles.size;
    const kinds = [...this.tiles.values()].map((tile) => tile.view.state);
    const words = [["live", "live"], ["idle", "unchanged"], ["stale", "stale"], ["degraded", "without answer"],
      ["reconnecting", "reconnecting"], ["failed", "failed"]]
      .map(([kind, word]) => [kinds.filter((it) => it === kind).length, word]).filter(([number]) => number)
      .map(([number, word]) => `${number} ${word}`).join(" · ");
    text(this.summary, total ? `${counted(total, "camera")}${words ? ` · ${words}` : ""}` : "");
    text(this.some, `Needs attention ${total - calm}`);
    text(this.nothing, total
      ? shown ? "" : "Nothing needs attention."
      : this.app.store.problem || "No camera has reported yet. A device that joins shows up here by itself.");
  }

  /** Arrows move between tiles, as in a grid. */
  #arrows(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: "down", ArrowUp: "up", Home: "first", End: "last" }[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    const tiles = [...this.list.children].filter((tile) => !tile.hidden);
    const at = tiles.indexOf(event.target.closest(".tile"));
    if (at < 0) return;
    const columns = tiles.filter((tile) => tile.offsetTop === tiles[0].offsetTop).length;
    const to = { down: at + columns, up: at - columns, first: 0, last: tiles.length - 1 }[step] ?? at + step;
    const target = tiles[to]?.querySelector("a");
    if (!target) return;
    event.preventDefault();
    target.focus();
    target.scrollIntoView({ block: "nearest" });
  }

  close() {
    this.seen.disconnect();
    this.app.shaped = null;
    for (const view of this.views) view.close();
  }
}
