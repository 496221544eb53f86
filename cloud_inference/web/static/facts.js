// A camera's numbers.

import { h, text } from "./dom.js";
import { PROVENANCE, bytes, count, delay, duration, fps, rate, words } from "./format.js";

/** The numbers of one camera as a definition list; `update` keeps them right. */
export class Facts {
  constructor(camera, store, { all = false } = {}) {
    this.camera = camera;
    this.store = store;
    this.rows = {};
    const row = (key, title) => {
      this.rows[key] = h("dd");
      return h("div.fact", { data: { fact: key } }, h("dt", { text: title }), this.rows[key]);
    };
    this.meter = h("i.meter", { "aria-hidden": "true" }, h("b"));
    const rows = [
      row("answer", "Latest answer"), row("delay", "Capture to answer"),
      row("fps", "Frames in / sent"), row("rate", "Bytes"),
    ];
    rows[3].append(this.meter);
    if (all) {
      rows.push(
        row("rung", "Rung"), row("objects", "Objects now"), row("model", "Model"), row("size", "Picture"),
        row("frames", "Frames since start"), row("masks", "Masks in force"), row("device", "Device"),
      );
    } else {
      rows.push(row("rung", "Rung"));
    }
    this.losses = h("ul.losses");
    this.element = h("div.facts", {}, h("dl", {}, ...rows), this.losses);
  }

  update() {
    const { camera, store, rows } = this;
    const { newest, status } = camera;
    if (newest) {
      const dot = newest.provenance;
      rows.answer.dataset.provenance = dot;
      const age = store.now - newest.last_captured;
      text(rows.answer, `${PROVENANCE[dot]}, ${age < 1000 ? "now" : `${duration(age)} ago`}`);
    } else text(rows.answer, "–");
    text(rows.delay, delay(camera.delay));
    text(rows.fps, status ? `${fps(status.fps)} / ${fps(camera.sentFps)} fps` : "–");
    this.#rate();
    text(rows.rung, status?.rung || "–");
    if (rows.model) {
      text(rows.objects, newest ? this.#objects(newest) : "–");
      text(rows.model, newest?.model || "–");
      text(rows.size, camera.source[0] ? `${camera.source[0]} × ${camera.source[1]}` : "–");
      text(rows.frames, status
        ? `${count(status.captured)} in, ${count(status.sent)} sent, ${count(status.idle)} idle` : "–");
      text(rows.masks, status ? String(status.masks) : "–");
      text(rows.device, camera.device ? `${camera.device.site}/${camera.device.device}` : "–");
    }
    this.#losses();
  }

  #rate() {
    const { camera, rows } = this;
    const now = camera.bytesPerSecond;
    const budget = (camera.status?.budget_kbit_s || 0) * 125;
    text(rows.rate, budget ? `${rate(now)} of ${rate(budget)}` : rate(now));
    this.meter.hidden = !budget;
    if (budget) {
      const share = Math.min(1, (now || 0) / budget);
      this.meter.firstChild.style.inlineSize = `${Math.round(share * 100)}%`;
      this.meter.dataset.full = share > 0.95;
    }
  }

  #objects(answer) {
    if (answer.provenance === "degraded") return "no answer";
    const names = new Map();
    for (const box of answer.boxes) names.set(box[6], (names.get(box[6]) || 0) + 1);
    return names.size ? [...names].map(([name, number]) => `${number} ${name}`).join(", ") : "none";
  }

  #losses() {
    const { camera } = this;
    const lines = [];
    for (const [reason, frames] of Object.entries(camera.status?.dropped || {})) {
      if (frames) lines.push(`${count(frames)} dropped: ${words(reason)}`);
    }
    for (const [reason, frames] of camera.degraded) {
      if (!camera.status?.dropped[reason]) lines.push(`${count(frames)} without answer: ${words(reason)}`);
    }
    if (camera.device?.spool.messages > 20) {
      lines.push(`${bytes(camera.device.spool.bytes)} wait on the device`);
    }
    const said = lines.join("\n");
    if (said === this.said) return;
    this.said = said;
    this.losses.replaceChildren(...lines.map((line) => h("li", { text: line })));
    this.losses.hidden = !lines.length;
  }
}
