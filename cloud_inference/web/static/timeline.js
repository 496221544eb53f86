// The past of a camera: a strip of what was answered how, and a slider over it.

import { ICONS, h, icon, text } from "./dom.js";
import { clock, duration } from "./format.js";

const RANGES = [[5, "5 min"], [15, "15 min"], [60, "1 h"], [360, "6 h"]];
const PIECES = 150;
const REFRESH_MS = 5000;
// Answers are fetched in windows of this length around the moment looked at.
const WINDOW_MS = 10_000;
// What is not over yet grows on, and what is over may still be answered late.
const [GROWING_MS, KEPT_MS] = [1000, 60_000];
const KINDS = ["cloud", "propagated", "edge", "degraded"];

export class Timeline {
  /** now() is the cloud's time; scrub({when, answer, trails, answers around it}) or scrub(null) for the live picture. */
  constructor(name, now, scrub) {
    this.name = name;
    this.now = now;
    this.scrub = scrub;
    this.minutes = 5;
    this.windows = new Map();
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.slider = h("input", {
      type: "range", min: "0", max: "1000", value: "1000", step: "1", "aria-label": "Moment shown",
      input: () => this.#moved(), keydown: (event) => this.#key(event),
    });
    this.when = h("output", { text: "Live" });
    this.live = h("button.tab", { type: "button", "aria-pressed": "true", click: () => this.#goLive() }, "Live");
    this.ranges = RANGES.map(([minutes, title]) => h("button.tab", {
      type: "button", "aria-pressed": String(minutes === this.minutes), data: { minutes },
      click: () => this.#range(minutes),
    }, title));
    const step = (by, title, path) => h("button.plain", {
      type: "button", "aria-label": title, click: () => this.#step(by),
    }, icon(path));
    this.ends = [h("span"), h("span", { text: "now" })];
    this.note = h("p.help");
    this.element = h("section.card.timeline", { "aria-label": "Timeline" },
      h("div.row", {},
        h("div.tabs", { role: "group", "aria-label": "Length" }, ...this.ranges),
        h("div.row.end", {}, step(-1, "Previous answer", ICONS.previous), this.when,
          step(1, "Next answer", ICONS.next), this.live)),
      h("div.strip", {}, this.canvas, this.slider),
      h("div.row.ends", {}, ...this.ends),
      h("ul.legend", {}, h("li.cloud", { text: "Cloud" }), h("li.propagated", { text: "Filled in" }),
        h("li.edge", { text: "Edge" }), h("li.degraded", { text: "No answer" }),
        h("li.objects", { text: "Objects" })),
      this.note);
    this.sized = new ResizeObserver(() => this.#paint());
    this.sized.observe(this.canvas);
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.repaint = () => this.#paint();
    this.dark.addEventListener("change", this.repaint);
  }

  update() {
    this.#end();
    if (!this.refused && performance.now() - (this.asked || -1e9) > REFRESH_MS) this.#load();
  }

  /** Live, the strip ends now; while the past is looked at it stands still. */
  #end() {
    if (!this.moment) this.to = this.now();
  }

  /** How much the strip shows, in milliseconds. */
  get #length() { return this.minutes * 60_000; }

  async #load() {
    this.asked = performance.now();
    const [from, to] = [this.to - this.#length, this.to];
    const query = new URLSearchParams({ camera: this.name, from: Math.round(from), to: Math.round(to), pieces: PIECES });
    const answer = await fetch(`/api/timeline?${query}`).catch(() => null);
    if (this.closed) return;
    this.refused = answer?.status === 403;
    if (!answer?.ok) return text(this.note, "The stored answers cannot be read now.");
    const found = await answer.json();
    text(this.note, found.complete ? "" : "Only the first part of this time is counted: choose a shorter one.");
    this.counted = { from, to, pieces: found.pieces, complete: found.complete };
    text(this.ends[0], clock(from));
    text(this.ends[1], this.moment ? clock(to) : "now");
    this.#paint();
  }

  #range(minutes) {
    this.minutes = minutes;
    for (const button of this.ranges) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.minutes) === minutes));
    }
    this.counted = null;
    this.asked = null;
    this.#goLive();
    this.#paint();
  }

  #goLive() {
    this.moment = null;
    this.#end();
    this.slider.value = this.slider.max;
    this.#say("Live", true);
    this.scrub(null);
  }

  #say(words, live) {
    text(this.when, words);
    this.slider.setAttribute("aria-valuetext", words);
    this.live.setAttribute("aria-pressed", String(live));
  }

  #moved() {
    const share = Number(this.slider.value) / 1000;
    if (share >= 1) return this.#goLive();
    if (!this.moment) this.to = this.counted?.to || this.to;
    this.#show(this.to - (1 - share) * this.#length);
  }

  #key(event) {
    // One step of the slider is a fraction of the range: whole answers are on the comma and the full stop.
    const by = { ",": -1, ".": 1 }[event.key];
    if (by) this.#step(by);
  }

  /** To the answer before or after the one that is shown, past times of which nothing is stored. */
  async #step(by) {
    const { moment } = this;
    const when = moment?.answer?.captured ?? moment?.when ?? this.to - 1;
    const [oldest, newest] = [this.to - this.#length, this.now()];
    for (let index = Math.floor(when / WINDOW_MS); ; index += by) {
      const [from, to] = span(index);
      if (to <= oldest || from > newest) return;
      if (this.#empty(from, to)) continue;
      const answers = await this.#window(index);
      if (this.moment !== moment) return;
      const next = by < 0
        ? answers.findLast((one) => one.captured < when - 0.5)
        : answers.find((one) => one.captured > when + 0.5);
      if (next) return this.#show(next.captured);
    }
  }

  /** Whether the strip says that nothing is stored of that time. */
  #empty(from, to) {
    const { counted } = this;
    if (!counted?.complete || from < counted.from || to > counted.to) return false;
    const piece = (when) => Math.floor((when - counted.from) / (counted.to - counted.from) * PIECES);
    return counted.pieces.slice(piece(from), piece(to) + 1).every((one) => KINDS.every((kind) => !one[kind]));
  }

  async #show(when) {
    const moment = { when };
    this.moment = moment;
    this.slider.value = Math.round(1000 * (1 - (this.to - when) / this.#length));
    this.#say(`${clock(when)}, ${duration(this.to - when)} ago`, false);
    const answers = await this.#around(when);
    if (this.moment !== moment) return;
    moment.answer = answers.findLast((one) => one.captured <= when + 0.5 && when - one.last_captured < 1500) || null;
    moment.answers = answers;
    moment.trails = moment.answer && trails(answers, moment.answer);
    this.scrub(moment);
  }

  /** Stored answers of a moment and of what came before it, oldest first. */
  async #around(when) {
    const index = Math.floor(when / WINDOW_MS);
    const [before, within] = await Promise.all([this.#window(index - 1), this.#window(index)]);
    return [...before.filter((one) => one.last_captured < span(index)[0]), ...within];
  }

  /** Stored answers of frames in one window, oldest first; of a range that began before it too. */
  async #window(index) {
    const [from, to] = span(index);
    const known = this.windows.get(index);
    if (known) return known;
    const query = new URLSearchParams({ camera: this.name, from, to });
    const asked = fetch(`/api/results?${query}`).then((answer) => (answer.ok ? answer.json() : { results: [] }))
      .then(({ results }) => results.sort((a, b) => a.captured - b.captured))
      .catch(() => []);
    this.windows.set(index, asked);
    setTimeout(() => this.windows.delete(index), to > this.to - 5000 ? GROWING_MS : KEPT_MS);
    if (this.windows.size > 60) this.windows.delete(this.windows.keys().next().value);
    return asked;
  }

  #paint() {
    const { canvas, counted } = this;
    const box = canvas.getBoundingClientRect();
    const dense = Math.min(window.devicePixelRatio || 1, 2);
    canvas.width = Math.round(box.width * dense);
    canvas.height = Math.round(box.height * dense);
    if (!counted || !canvas.width) return;
    const style = getComputedStyle(canvas);
    const ink = (name) => style.getPropertyValue(`--${name}`).trim();
    const context = canvas.getContext("2d");
    const [step, floor] = [canvas.width / PIECES, canvas.height];
    const most = Math.max(...counted.pieces.map((piece) => piece.objects), 1);
    counted.pieces.forEach((piece, at) => {
      const total = KINDS.reduce((sum, kind) => sum + piece[kind], 0);
      if (!total) return;
      let top = floor;
      for (const kind of KINDS) {
        const high = (piece[kind] / total) * floor * 0.5;
        context.fillStyle = ink(kind);
        context.fillRect(Math.floor(at * step), top - high, Math.ceil(step - 0.5 * dense), high);
        top -= high;
      }
    });
    context.strokeStyle = ink("ink");
    context.lineWidth = 1.5 * dense;
    context.lineJoin = "round";
    let drawing = false;
    context.beginPath();
    counted.pieces.forEach((piece, at) => {
      if (!KINDS.some((kind) => piece[kind])) { drawing = false; return; }
      const [x, y] = [(at + 0.5) * step, floor * 0.44 - (piece.objects / most) * floor * 0.38];
      context[drawing ? "lineTo" : "moveTo"](x, y);
      drawing = true;
    });
    context.stroke();
    context.fillStyle = ink("event");
    counted.pieces.forEach((piece, at) => {
      if (!piece.events) return;
      context.beginPath();
      context.arc((at + 0.5) * step, floor * 0.5, 2.5 * dense, 0, 7);
      context.fill();
    });
  }

  close() {
    this.closed = true;
    this.sized.disconnect();
    this.dark.removeEventListener("change", this.repaint);
  }
}

/** [from, to) of a window, in milliseconds. */
const span = (index) => [index * WINDOW_MS, (index + 1) * WINDOW_MS];

function trails(answers, answer, ms = 6000) {
  const found = new Map(answer.boxes.filter((box) => box[5]).map((box) => [box[5], []]));
  for (const one of answers) {
    if (one.epoch !== answer.epoch || one.captured > answer.captured) continue;
    if (answer.captured - one.last_captured > ms) continue;
    for (const box of one.boxes) found.get(box[5])?.push([(box[0] + box[2]) / 2, box[3]]);
  }
  return found;
}
