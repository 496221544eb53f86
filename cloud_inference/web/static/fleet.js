// The fleet: every device, and how full Triton's batches are.

import { fill, h, text } from "./dom.js";
import { bytes, count, counted, delay, duration } from "./format.js";

// A device reports every two seconds.
const SILENT_MS = 8000;
const TRITON_MS = 2000;

const COLUMNS = [
  ["Device", "name"], ["State", "state"], ["Cameras", "cameras"], ["Version", "version"], ["Backlog", "backlog"],
  ["Clock", "clock"], ["Memory", "memory"], ["Sent", "sent"], ["Configuration", "config"],
];

export class Fleet {
  constructor(app) {
    this.app = app;
    this.title = h("h1", { text: "Fleet" });
    this.summary = h("p.summary");
    this.body = h("tbody");
    this.nothing = h("p.nothing");
    this.triton = h("div.batches");
    this.table = h("table.devices", {},
      h("thead", {}, h("tr", {}, ...COLUMNS.map(([title]) => h("th", { scope: "col", text: title })))), this.body);
    this.element = h("section.page", {},
      h("div.head", {}, h("div", {}, this.title, this.summary)),
      h("div.card.scroll", { tabindex: "0", role: "region", "aria-label": "Devices" }, this.table, this.nothing),
      this.triton);
    this.rows = new Map();
    this.models = new Map();
  }

  update() {
    const { store } = this.app;
    let up = 0;
    for (const device of store.devices) {
      const key = `${device.site}/${device.device}`;
      if (!this.rows.has(key)) this.rows.set(key, this.#row(key));
      up += this.#fill(this.rows.get(key), device, store.now);
    }
    const elements = [...this.rows.keys()].sort().map((key) => this.rows.get(key).element);
    if (elements.some((element, at) => this.body.children[at] !== element)) fill(this.body, ...elements);
    const total = this.rows.size;
    this.table.hidden = !total;
    text(this.summary, total ? `${counted(total, "device")} · ${up} up` : "");
    text(this.nothing, total ? "" : "No device has reported yet.");
    if (performance.now() - (this.asked || -1e9) > TRITON_MS) this.#ask();
  }

  #row(key) {
    const cells = Object.fromEntries(COLUMNS.map(([title, name]) =>
      [name, h(name === "name" ? "th" : "td", { scope: name === "name" ? "row" : null, data: { label: title } })]));
    return { cells, element: h("tr", { data: { device: key } }, ...Object.values(cells)) };
  }

  /** Whether the device is up. */
  #fill({ cells, element }, device, now) {
    const silent = now - device.stored;
    const kind = silent > SILENT_MS ? "stale" : device.hub_connected ? "live" : "reconnecting";
    const words = { live: "Up", reconnecting: "No link", stale: `Silent ${duration(silent)}` }[kind];
    element.dataset.state = kind;
    once(cells.name, `${device.site}/${device.device}`, (said) => fill(cells.name, said));
    once(cells.state, words, () => fill(cells.state, h("span.state", {}, h("i"), words)));
    const bad = device.cameras.filter((camera) => camera.state === "failed" || camera.state === "reconnecting");
    const names = device.cameras.map((camera) => camera.camera).join(",");
    once(cells.cameras, `${names} ${bad.length}`, () => fill(cells.cameras,
      h("span", {}, ...device.cameras.slice(0, 4).flatMap((camera, at) => [at ? ", " : "",
        h("a", { href: `#/camera/${device.site}/${camera.camera}`, text: camera.camera })]),
      device.cameras.length > 4 ? ` and ${device.cameras.length - 4} more` : ""),
      bad.length ? h("small.bad", { text: `${bad.length} without picture: ${bad[0].message || bad[0].state}` }) : null));
    once(cells.version, `${device.version} ${device.model}`, () =>
      fill(cells.version, h("span", { text: device.version }), h("small", { text: device.model })));
    const { spool } = device;
    const waits = spool.messages ? `${bytes(spool.bytes)}, ${duration(spool.oldest)} old` : "none";
    once(cells.backlog, `${waits} ${spool.limit_bytes}`, () => fill(cells.backlog, h("span", { text: waits }),
      spool.messages ? h("small", { text: `of ${bytes(spool.limit_bytes)}` }) : null));
    const { clock } = device;
    once(cells.clock, clock.uncertainty ? `${clock.offset >= 0 ? "+" : "−"}${delay(Math.abs(clock.offset))}` : "unknown",
      (said) => fill(cells.clock, h("span", { text: said }),
        clock.uncertainty ? h("small", { text: `± ${delay(clock.uncertainty)}` }) : null));
    once(cells.memory, bytes(device.resident_bytes), (said) => fill(cells.memory, said));
    once(cells.sent, bytes(device.bytes_sent), (said) => fill(cells.sent, said));
    const config = !device.wanted_revision ? "local"
      : device.wanted_revision === device.revision ? `revision ${device.revision}` : `waits for ${device.wanted_revision}`;
    once(cells.config, config, (said) => fill(cells.config, said));
    return kind === "live";
  }

  async #ask() {
    this.asked = performance.now();
    const answer = await fetch("/api/triton").then((it) => (it.ok ? it.json() : null)).catch(() => null);
    if (!answer?.models || this.closed) return;
    fill(this.triton, h("h2", { text: "Triton batches" }), ...(answer.models.length
      ? answer.models.map((model) => this.#model(model))
      : [h("p.nothing", { text: "Triton does not answer." })]));
  }

  #model(model) {
    const sizes = Object.entries(model.batches).map(([size, runs]) => [Number(size), runs]).sort((a, b) => a[0] - b[0]);
    const most = Math.max(...sizes.map(([, runs]) => runs), 1);
    const mean = model.executions ? model.inferences / model.executions : 0;
    const [runs, ms] = model.compute;
    const [waits, waited] = model.queue;
    return h("section.card.model", {},
      h("h3", {}, model.name, h("small", { text: ` version ${model.version}` })),
      h("dl.inline", {}, ...[
        ["Pictures", count(model.inferences)], ["Runs", count(model.executions)], ["Mean batch", mean.toFixed(2)],
        ["In the queue", waits ? delay(waited / waits) : "–"], ["Of one run", runs ? delay(ms / runs) : "–"],
      ].map(([title, value]) => h("div", {}, h("dt", { text: title }), h("dd", { text: value })))),
      h("table.bars", {}, h("caption", { text: "Runs by batch size" }), h("tbody", {}, ...sizes.map(([size, number]) => {
        const bar = h("i");
        bar.style.inlineSize = `${Math.max(1, Math.round((number / most) * 100))}%`;
        return h("tr", {}, h("th", { scope: "row", text: String(size) }), h("td", {}, bar), h("td", { text: count(number) }));
      }))));
  }

  close() { this.closed = true; }
}

/** Do it only when what is said has changed. */
function once(cell, said, work) {
  if (cell.dataset.said === said) return;
  cell.dataset.said = said;
  work(said);
}
