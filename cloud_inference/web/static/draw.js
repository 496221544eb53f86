// Drawing masks, zones and lines on the picture, by pointer or by keys; they become the device's wanted state.

import { ICONS, fill, h, icon, say, text } from "./dom.js";
import { INKS, arrow, path } from "./overlay.js";

const KINDS = { masks: "mask", zones: "zone", lines: "line" };
const HELP = {
  masks: "Hidden on the device before anything leaves it.",
  zones: "Counts what comes in and what is inside.",
  lines: "Counts what crosses it, each way. The arrow points forwards.",
};
const UNKNOWN = "Its device has not reported yet.";
const NEAR_PX = 12;

export class Draw {
  constructor(app, view) {
    this.app = app;
    this.view = view;
    this.kind = null;
    this.points = [];
    this.cursor = [0.5, 0.5];
    this.shapes = { masks: [], zones: [], lines: [] };
    this.canvas = h("canvas.sketch", {
      tabindex: "0", role: "application", hidden: true,
      "aria-label": "Drawing. Arrow keys move the cross, Space sets a point, Enter finishes, Escape stops.",
      pointerdown: (event) => this.#press(event), pointermove: (event) => this.#move(event),
      dblclick: () => this.#finish(), keydown: (event) => this.#key(event),
    });
    view.stage.append(this.canvas);
    this.tools = Object.entries(KINDS).map(([kind, title]) => h("button.tool", {
      type: "button", "aria-pressed": "false", data: { kind }, title: HELP[kind], click: () => this.#begin(kind),
    }, icon(ICONS[title]), `Draw ${title}`));
    this.hint = h("p.help");
    this.save = h("button.primary", { type: "button", hidden: true, text: "Save", click: () => this.#save() });
    this.drop = h("button.plain", { type: "button", hidden: true, text: "Discard", click: () => this.#discard() });
    this.toolbar = app.canWrite
      ? h("div.toolbar", { role: "toolbar", "aria-label": "Draw on the picture" }, ...this.tools, this.hint,
        h("span.row.end", {}, this.drop, this.save))
      : h("div");
    this.list = h("div.shapes");
    this.sized = new ResizeObserver(() => this.#paint());
    this.sized.observe(this.canvas);
    this.sync();
  }

  /** Take over what is stored, unless something is being changed here. */
  sync() {
    const { camera } = this.view;
    const known = Boolean(camera.device);
    if (known !== this.known) {
      // Before its device has reported, it is not known what is drawn already.
      this.known = known;
      for (const tool of this.tools) tool.disabled = !known;
      text(this.hint, known ? "" : UNKNOWN);
    }
    if (!this.changed) {
      const stored = this.view.drawing || { masks: [], zones: [], lines: [] };
      const said = JSON.stringify([stored, camera.device?.revision, camera.device?.wanted_revision]);
      if (said === this.said) return;
      this.said = said;
      this.shapes = structuredClone(stored);
      this.revision = camera.device?.wanted_revision ?? 0;
    }
    this.#list();
  }

  #begin(kind) {
    if (this.kind === kind) return this.#stop();
    this.kind = kind;
    this.points = [];
    this.canvas.hidden = false;
    for (const tool of this.tools) tool.setAttribute("aria-pressed", String(tool.dataset.kind === kind));
    text(this.hint, `${HELP[kind]} ${kind === "lines"
      ? "Set its two ends." : "Set the corners; finish on the first one, or with Enter."}`);
    this.canvas.focus({ preventScroll: true });
    this.#paint();
  }

  #stop() {
    this.kind = null;
    this.points = [];
    this.canvas.hidden = true;
    for (const tool of this.tools) tool.setAttribute("aria-pressed", "false");
    text(this.hint, "");
    this.#paint();
  }

  #at(event) {
    const box = this.canvas.getBoundingClientRect();
    const inside = (value) => Math.min(1, Math.max(0, value));
    return [inside((event.clientX - box.left) / box.width), inside((event.clientY - box.top) / box.height)];
  }

  #press(event) {
    if (event.button) return;
    this.cursor = this.#at(event);
    this.#point();
  }

  #move(event) {
    this.cursor = this.#at(event);
    this.#paint();
  }

  #point() {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = this.cursor;
    const close = ([px, py]) => Math.hypot((px - x) * box.width, (py - y) * box.height) < NEAR_PX;
    if (this.points.length > 2 && close(this.points[0])) return this.#finish();
    if (this.points.length && close(this.points.at(-1))) return;
    this.points.push([x, y]);
    say(`Point ${this.points.length}`);
    if (this.kind === "lines" && this.points.length === 2) return this.#finish();
    this.#paint();
  }

  #finish() {
    const least = this.kind === "lines" ? 2 : 3;
    if (!this.kind || this.points.length < least) {
      return say(`At least ${least} points are needed`);
    }
    const taken = new Set(this.shapes[this.kind].map((shape) => shape.name));
    let number = 1;
    while (taken.has(`${KINDS[this.kind]} ${number}`)) number += 1;
    const name = `${KINDS[this.kind]} ${number}`;
    this.shapes[this.kind].push({ name, points: this.points.map(([x, y]) => [round(x), round(y)]) });
    say(`${name} is drawn. Save to put it into force`);
    this.#stop();
    this.#touched();
    this.save.focus({ preventScroll: true });
  }

  #key(event) {
    const fine = event.shiftKey ? 0.1 : 0.02;
    const step = { ArrowLeft: [-fine, 0], ArrowRight: [fine, 0], ArrowUp: [0, -fine], ArrowDown: [0, fine] }[event.key];
    if (step) this.cursor = this.cursor.map((at, axis) => Math.min(1, Math.max(0, at + step[axis])));
    else if (event.key === " ") this.#point();
    else if (event.key === "Enter") this.#finish();
    else if (event.key === "Backspace") this.points.pop();
    else if (event.key === "Escape") {
      const { kind } = this;
      this.#stop();
      this.tools.find((tool) => tool.dataset.kind === kind)?.focus();
    } else return;
    event.preventDefault();
    this.#paint();
  }

  #paint() {
    const { canvas } = this;
    const { width, height } = canvas.getBoundingClientRect();
    const dense = Math.min(window.devicePixelRatio || 1, 2);
    canvas.width = Math.round(width * dense);
    canvas.height = Math.round(height * dense);
    if (!this.kind || !canvas.width) return;
    const context = canvas.getContext("2d");
    context.scale(dense, dense);
    const points = [...this.points, this.cursor];
    path(context, points, [width, height], false);
    context.strokeStyle = INKS[this.kind];
    context.lineWidth = 2;
    context.stroke();
    if (this.kind === "lines" && points.length === 2) arrow(context, points, [width, height]);
    context.fillStyle = INKS[this.kind];
    for (const [x, y] of this.points) {
      context.beginPath();
      context.arc(x * width, y * height, 4, 0, 7);
      context.fill();
    }
    const [x, y] = [this.cursor[0] * width, this.cursor[1] * height];
    context.strokeStyle = "rgb(255 255 255 / .9)";
    context.lineWidth = 1;
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + dx * 4, y + dy * 4);
      context.lineTo(x + dx * 12, y + dy * 12);
    }
    context.stroke();
  }

  #touched() {
    this.changed = true;
    this.save.hidden = this.drop.hidden = false;
    // What is drawn and not saved is shown as it would be.
    this.view.sketch = this.shapes;
    this.view.redraw();
    this.#list();
  }

  #saved() {
    this.changed = false;
    this.save.hidden = this.drop.hidden = true;
    this.view.sketch = null;
    this.said = "";
  }

  #discard() {
    this.#saved();
    this.#stop();
    this.sync();
    this.view.redraw();
  }

  async #save() {
    const { camera } = this.view;
    if (!camera.device) return text(this.hint, UNKNOWN);
    this.save.disabled = true;
    const answer = await fetch(`/api/drawing?${new URLSearchParams({ camera: camera.name })}`, {
      method: "PUT", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ device: camera.device.device, revision: this.revision, drawing: this.shapes }),
    }).catch(() => null);
    this.save.disabled = false;
    if (!answer?.ok) {
      const why = answer ? await answer.text() : "The server does not answer.";
      text(this.hint, why);
      return say(why);
    }
    this.revision = (await answer.json()).revision;
    text(this.hint, "");
    say("Saved");
    this.#saved();
    this.#list();
  }

  #list() {
    const { camera } = this.view;
    const device = camera.device;
    const rows = Object.entries(KINDS).flatMap(([kind, title]) => this.shapes[kind].map((shape, at) => h("li", {},
      h("span.swatch", { class: kind, "aria-hidden": "true" }),
      this.app.canWrite
        ? h("input.name", {
          value: shape.name, maxlength: "64", "aria-label": `Name of this ${title}`,
          change: (event) => { shape.name = event.target.value.trim() || shape.name; this.#touched(); },
        })
        : h("span", { text: shape.name }),
      this.app.canWrite && h("button.plain", {
        type: "button", "aria-label": `Delete ${shape.name}`,
        click: () => { this.shapes[kind].splice(at, 1); this.#touched(); },
      }, icon(ICONS.trash)))));
    const pending = device && device.wanted_revision && device.wanted_revision !== device.revision;
    const state = this.changed ? "Not saved yet."
      : pending ? "Saved. Waiting for the device to take it up."
        : rows.length ? "In force on the device." : "";
    fill(this.list, rows.length ? h("ul", {}, ...rows) : null,
      state ? h("p.help.force", { data: { pending: String(Boolean(pending || this.changed)) }, text: state }) : null);
  }

  close() { this.sized.disconnect(); }
}

const round = (value) => Math.round(value * 1e4) / 1e4;
