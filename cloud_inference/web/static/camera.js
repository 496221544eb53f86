// One camera: its picture large, its numbers, its past, and drawing on it.

import { ICONS, fill, h, icon, text } from "./dom.js";
import { Draw } from "./draw.js";
import { Facts } from "./facts.js";
import { clock, count } from "./format.js";
import { Timeline } from "./timeline.js";
import { View } from "./view.js";

export class CameraPage {
  constructor(app, name) {
    this.app = app;
    this.name = name;
    this.view = new View(app, name);
    this.view.frame.classList.add("large");
    this.facts = new Facts(this.view.camera, app.store, { all: true });
    const [site, camera] = name.split("/");
    this.title = h("h1", {}, h("span.site", { text: `${site} / ` }), camera);
    this.counts = h("div.counts");
    this.draw = new Draw(app, this.view);
    this.timeline = new Timeline(name, (moment) => this.#scrub(moment));
    this.badge = h("p.past", { hidden: true });
    this.view.frame.append(this.badge);
    this.element = h("section.page.one", {},
      h("div.head", {}, h("a.plain.back", { href: "#/", "aria-label": "Back to all cameras" }, icon(ICONS.back)), this.title),
      h("div.columns", {},
        h("div.left", {}, this.view.frame, this.draw.toolbar, this.timeline.element),
        h("div.right", {}, h("section.card", {}, h("h2", { text: "Now" }), this.facts.element),
          h("section.card", {}, h("h2", { text: "Zones and lines" }), this.counts, this.draw.list))));
  }

  get wanted() { return [this.view]; }
  get views() { return [this.view]; }

  devices() { this.draw.sync(); }

  update(now) {
    this.view.update(now);
    this.facts.update();
    this.timeline.update(this.app.store.now);
    this.#count();
  }

  /** What was counted at zones and lines, as the newest answer says. */
  #count() {
    const answer = this.view.camera.answers.findLast((one) => one.zones || one.lines);
    const rows = [
      ...(answer?.zones || []).map(([name, inside, , , total]) =>
        [name, `${count(inside)} inside`, `${count(total)} came in`]),
      ...(answer?.lines || []).map(([name, , , forward, backward]) =>
        [name, `${count(forward)} forwards`, `${count(backward)} backwards`]),
    ];
    const said = JSON.stringify(rows);
    if (said === this.said) return;
    this.said = said;
    fill(this.counts, rows.length
      ? h("table.plain-table", {}, h("tbody", {}, ...rows.map(([name, one, two]) =>
        h("tr", {}, h("th", { scope: "row", text: name }), h("td", { text: one }), h("td", { text: two })))))
      : h("p.help", { text: "Draw a zone or a line on the picture, and objects are counted there." }));
  }

  /** Show a moment of the past, or the live picture again with null. */
  async #scrub(moment) {
    const { view } = this;
    this.scrubbing = moment;
    view.held = Boolean(moment);
    view.frame.classList.toggle("in-past", Boolean(moment));
    this.badge.hidden = !moment;
    if (!moment) {
      this.past = null;
      if (view.player.picture) view.player.draw();
      return;
    }
    const { answer, when } = moment;
    if (!answer) {
      text(this.badge, `${clock(when)} · nothing is stored for this moment`);
      view.overlay.show(null, view.camera.source);
      return this.#backdrop(null);
    }
    const why = answer.provenance === "degraded" ? ` · no answer: ${answer.reason}` : "";
    const source = answer.source[0] ? answer.source : view.camera.source;
    view.fit(source);
    view.boxes.dataset.sequence = answer.sequence;
    view.overlay.show(answer, source, moment.trails, view.drawing);
    const shown = await this.#kept(answer);
    if (this.scrubbing !== moment) return shown?.close();
    this.#backdrop(shown);
    const kept = shown ? "" : " · pixels are deleted once answered, the answer stays";
    text(this.badge, `${clock(answer.captured)}${why}${kept}`);
  }

  /** The picture of that frame, while its chain is kept. */
  async #kept(answer) {
    const query = new URLSearchParams({ camera: this.name, epoch: answer.epoch, sequence: answer.last });
    const found = await fetch(`/api/picture?${query}`).catch(() => null);
    return found?.ok ? createImageBitmap(await found.blob()) : null;
  }

  #backdrop(image) {
    const { context, canvas } = this.view.player;
    if (!image) {
      context.fillStyle = "#0b0e13";
      return context.fillRect(0, 0, canvas.width, canvas.height);
    }
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    image.close();
  }

  close() {
    this.draw.close();
    this.timeline.close();
    this.view.close();
  }
}
