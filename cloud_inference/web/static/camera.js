// One camera: its picture large, its numbers, its past, and drawing on it.

import { ICONS, fill, h, icon, text } from "./dom.js";
import { Draw } from "./draw.js";
import { Facts } from "./facts.js";
import { clock, count } from "./format.js";
import { Timeline } from "./timeline.js";
import { View } from "./view.js";

// A picture that takes longer is said to be looked for, and given up after a while.
const SLOW_MS = 300;
const GIVE_UP_MS = 10_000;

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
    this.timeline = new Timeline(name, () => app.store.now, (moment) => this.#scrub(moment));
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

  devices() {
    this.draw.sync();
    this.view.redraw();
  }

  update(now) {
    this.view.update(now);
    this.facts.update();
    this.timeline.update();
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
  #scrub(moment) {
    const { view } = this;
    this.moment = moment;
    view.frame.classList.toggle("in-past", Boolean(moment));
    this.badge.hidden = !moment;
    if (!moment) return view.live();
    view.player.hold();
    this.#follow();
  }

  /** Picture and boxes change together. One picture is asked for at a time, and of the moments chosen meanwhile the last. */
  async #follow() {
    if (this.following) return;
    this.following = true;
    let shown = null;
    while (this.moment && this.moment !== shown && !this.closed) {
      const { moment } = this;
      const slow = setTimeout(() => text(this.badge, `Looking for ${clock(moment.when)}`), SLOW_MS);
      const picture = moment.answer && await this.#kept(moment.answer);
      clearTimeout(slow);
      if (this.moment && !this.closed) {
        this.view.past(picture, moment.answer, moment.trails);
        text(this.badge, said(moment, picture));
      }
      picture?.image.close();
      shown = moment;
    }
    this.following = false;
  }

  /** The newest picture that was sent up to that frame, while its chain is kept. */
  async #kept(answer) {
    const query = new URLSearchParams({ camera: this.name, epoch: answer.epoch, sequence: answer.last });
    try {
      const found = await fetch(`/api/picture?${query}`, { signal: AbortSignal.timeout(GIVE_UP_MS) });
      if (found.status !== 200) return null;
      const header = JSON.parse(found.headers.get("Eyeline-Picture"));
      return { ...header, epoch: answer.epoch, image: await createImageBitmap(await found.blob()) };
    } catch {
      return null;
    }
  }

  close() {
    this.closed = true;
    this.draw.close();
    this.timeline.close();
    this.view.close();
  }
}

/** What a moment of the past shows: when it was, and of when its picture is where that is another. */
function said({ when, answer, answers }, picture) {
  if (!answer) return `${clock(when)} · nothing is stored for this moment`;
  const words = [clock(answer.captured)];
  if (answer.provenance === "degraded") words.push(`no answer: ${answer.reason}`);
  if (!picture) words.push("pixels are deleted once answered, the answer stays");
  else if (picture.sequence < answer.sequence) {
    const of = answers.find((one) => one.epoch === answer.epoch && one.sequence <= picture.sequence
      && picture.sequence <= one.last);
    const earlier = of ? `${((answer.captured - of.captured) / 1000).toFixed(1)} s earlier` : "from earlier";
    words.push(`picture ${earlier}${answer.idle ? ", unchanged since" : ""}`);
  }
  return words.join(" · ");
}
