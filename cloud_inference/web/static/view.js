// A camera's picture with what is drawn over it, and the state it is in.

import { h, text } from "./dom.js";
import { clock, duration, words } from "./format.js";
import { Overlay } from "./overlay.js";
import { canDecode, Player } from "./player.js";

const STATES = {
  live: () => ["Live", ""],
  idle: (camera, silent, now) => [`Unchanged ${duration(now - camera.idleSince)}`, ""],
  stale: (camera, silent) => [`Stale ${duration(silent)}`, `No answer since ${clock(camera.newest.answered)}`],
  degraded: (camera) => ["No answer", words(camera.newest.reason)],
  reconnecting: (camera) => ["Reconnecting", camera.status.message || "The camera does not answer"],
  failed: (camera) => ["Failed", camera.status.message],
  ended: () => ["Ended", "The source has come to its end"],
  waiting: (camera) => ["Waiting", camera.status?.message || "No answers yet"],
  lost: () => ["Offline", "This page lost its server; it tries again"],
};

export class View {
  /** app: store, link and watching. name: SITE/CAMERA. */
  constructor(app, name) {
    this.app = app;
    this.camera = app.store.camera(name);
    this.stills = app.stills.has(name);
    this.picture = h("canvas.picture", { "aria-hidden": "true" });
    this.boxes = h("canvas.boxes", { "aria-hidden": "true" });
    this.stage = h(".stage", {}, this.picture, this.boxes);
    this.chip = h("span.chip", {}, h("i"), h("span"));
    this.note = h("p.note");
    this.empty = h("p.empty", { text: "Waiting for a picture" });
    this.frame = h(".frame", {}, this.stage, this.empty, h(".veil", { "aria-hidden": "true" }), this.note, this.chip);
    this.overlay = new Overlay(this.boxes);
    this.player = this.#player();
  }

  #player() {
    return new Player(this.camera, this.picture, (answer, source) => this.shown(answer, source), () => {
      this.stills = true;
      this.app.stills.add(this.camera.name);
      this.app.watch();
    });
  }

  get how() { return this.stills || !canDecode() ? "stills" : "video"; }

  /** What is drawn on it: what is being drawn here, or else what is stored. */
  get drawing() { return this.sketch || this.camera.device?.desired[this.camera.name.split("/")[1]]; }

  /** A live picture is on the stage, with its answer or still without. */
  shown(answer, source) {
    this.empty.hidden = true;
    this.answer = answer;
    this.fit(source);
    this.boxes.dataset.sequence = answer ? this.picture.dataset.sequence : "";
    this.overlay.show(answer, source, answer && this.camera.trails(answer), this.drawing);
  }

  /** A moment of the past: its answer and the picture kept for it, both at once; null for what there is not. */
  past(picture, answer, trails) {
    const source = answer?.source[0] ? answer.source : this.camera.source;
    if (source[0]) this.fit(source);
    this.player.place(picture);
    this.boxes.dataset.sequence = answer ? answer.sequence : "";
    this.overlay.show(answer, source, trails, this.drawing);
  }

  /** What is seen now, again. */
  live() {
    this.boxes.dataset.sequence = "";
    this.overlay.show(null, this.camera.source, null, this.drawing);
    this.player.release();
  }

  /** Give the stage the picture's own shape. */
  fit([width, height]) {
    const shape = width / height;
    if (shape === this.shape) return;
    this.shape = shape;
    this.stage.style.setProperty("--shape", shape);
    this.app.shaped?.(shape);
  }

  /** What is drawn on it has changed. */
  redraw() { this.overlay.redraw(this.drawing); }

  /** Now and then: what time does to it. */
  update(now) {
    const { kind, silent } = this.camera.state(now, this.app.store.connected);
    const [title, more] = STATES[kind](this.camera, silent, this.app.store.now);
    this.frame.dataset.state = kind;
    text(this.chip.lastChild, title);
    text(this.note, more);
    this.state = kind;
    return { kind, title, more };
  }

  close() {
    this.player.close();
    this.overlay.close();
  }
}
