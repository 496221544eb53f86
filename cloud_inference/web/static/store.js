// What is known of every camera and device, and what state that amounts to.

const KEPT = 400;
const STALE_MS = 2200;
const RATE_MS = 10_000;

/** A camera as the page knows it. */
export class Camera {
  constructor(name) {
    this.name = name;
    this.answers = [];          // oldest first, one run of the agent
    this.bySequence = new Map();
    this.epoch = "";
    this.newest = null;
    this.lag = Infinity;        // from capture to here at its shortest; the clocks' difference is in it
    this.gaps = [];             // how old the picture had become when the next answer came, the last few
    this.idleSince = 0;
    this.status = null;
    this.device = null;
    this.samples = [];          // of the status, for rates
    this.degraded = new Map();  // frames without an answer since the page was opened, by reason
    this.source = [0, 0];
  }

  /** Whether anybody spoke of it: a name in an address alone is no camera. */
  get heardOf() { return Boolean(this.newest || this.status); }

  /** Take answers; those of an older run only count where they are asked for. */
  take(answer, arrived) {
    if (answer.late || answer.provisional) return;
    if (this.epoch !== answer.epoch) {
      if (this.epoch && runOf(answer.epoch) < runOf(this.epoch)) return;
      this.epoch = answer.epoch;
      this.answers = [];
      this.bySequence.clear();
      this.newest = null;
    }
    if (this.bySequence.has(answer.sequence)) return;
    this.answers.push(answer);
    this.bySequence.set(answer.sequence, answer);
    while (this.answers.length > KEPT) this.bySequence.delete(this.answers.shift().sequence);
    if (answer.source[0]) this.source = answer.source;
    if (answer.provenance === "degraded") {
      const frames = answer.last - answer.sequence + 1;
      this.degraded.set(answer.reason, (this.degraded.get(answer.reason) || 0) + frames);
    }
    if (this.newest && answer.last <= this.newest.last) return;
    this.#arrive(answer, arrived);
    if (!answer.idle) this.idleSince = 0;
    else if (!this.idleSince) this.idleSince = answer.captured;
    this.newest = answer;
  }

  #arrive(answer, arrived) {
    const gap = this.age(arrived);
    // Answers that travel together are one arrival; after a silence, the rhythm is a new one.
    if (gap > 100 && gap < 20_000) this.gaps = [...this.gaps.slice(-9), gap];
    // Clocks drift, and routes change: the shortest way is forgotten slowly.
    this.lag = Math.min(this.lag + 0.2, arrived - answer.last_captured);
  }

  /** How much older the newest answered frame is than it has to be, whatever the device's clock says, in ms. */
  age(now) { return this.newest ? now - this.newest.last_captured - this.lag : Infinity; }

  /** Older than that is stale: more only for a camera that is known to answer more rarely. */
  get patience() {
    const usual = [...this.gaps].sort((a, b) => a - b)[Math.floor(this.gaps.length * 0.8)] || 0;
    return Math.min(Math.max(STALE_MS, usual * 1.6), 90_000);
  }

  /** The answer for a frame, whether it stands alone or in a range. */
  answerFor(epoch, sequence) {
    if (epoch !== this.epoch) return null;
    const found = this.bySequence.get(sequence);
    if (found) return found;
    const range = this.answers.findLast((one) => one.sequence <= sequence && sequence <= one.last);
    if (range) return range;
    // Nothing has changed since: what stands now stood then.
    return this.newest?.idle && sequence < this.newest.sequence ? this.newest : null;
  }

  /** Where each track of an answer came from: [x, y] of the middle of its lower edge, oldest first. */
  trails(answer, ms = 6000) {
    const trails = new Map(answer.boxes.filter((box) => box[5]).map((box) => [box[5], []]));
    for (const one of this.answers) {
      if (one.sequence > answer.sequence) break;
      if (answer.captured - one.last_captured > ms) continue;
      for (const box of one.boxes) trails.get(box[5])?.push([(box[0] + box[2]) / 2, box[3]]);
    }
    return trails;
  }

  report(device, status) {
    this.device = device;
    this.status = status;
    if (status.size[0]) this.source = status.size;
    const last = this.samples.at(-1);
    if (last && (device.reported <= last.at || status.bytes < last.bytes)) {
      if (status.bytes < last.bytes) this.samples = [];
      else return;
    }
    const dropped = Object.values(status.dropped).reduce((sum, frames) => sum + frames, 0);
    this.samples.push({ at: device.reported, bytes: status.bytes, sent: status.sent, dropped });
    while (this.samples.length > 2 && device.reported - this.samples[1].at > RATE_MS) this.samples.shift();
  }

  #perSecond(field) {
    const [first, last] = [this.samples[0], this.samples.at(-1)];
    if (!first || last.at <= first.at) return NaN;
    return ((last[field] - first[field]) * 1000) / (last.at - first.at);
  }

  get sentFps() { return this.#perSecond("sent"); }
  get bytesPerSecond() { return this.#perSecond("bytes"); }
  get droppedLately() {
    const lost = this.#perSecond("dropped");
    return lost > 0 ? lost : 0;
  }

  /** From capture to the stored answer: the middle of the last ones, in ms. */
  get delay() {
    const recent = this.answers.slice(-40).filter((one) => one.answered && one.last_captured)
      .map((one) => one.answered - one.last_captured).sort((a, b) => a - b);
    return recent.length ? recent[recent.length >> 1] : NaN;
  }

  /** One word for the whole, and since when (ms ago). */
  state(now, connected) {
    const silent = this.age(now);
    const said = this.status?.state;
    if (!connected) return { kind: "lost", silent };
    if (!this.newest) return { kind: "waiting", silent };
    if (silent > this.patience) {
      return said === "ended" || said === "failed" ? { kind: said, silent } : { kind: "stale", silent };
    }
    if (said === "failed" || said === "reconnecting") return { kind: said, silent };
    if (this.newest.provenance === "degraded") return { kind: "degraded", silent };
    if (this.newest.idle) return { kind: "idle", silent };
    return { kind: "live", silent };
  }
}

const runOf = (epoch) => Number(epoch.split(":")[0]);

/** Everything, fed by the link. */
export class Store extends EventTarget {
  constructor(link) {
    super();
    this.cameras = new Map();
    this.devices = [];
    this.connected = false;
    this.problem = "";
    this.ahead = 0; // the server's clock, before ours
    link.addEventListener("text", ({ detail }) => this.#take(detail));
    link.addEventListener("state", ({ detail }) => {
      this.connected = detail;
      this.#emit("state");
    });
  }

  /** The server's time, ms since the Unix epoch. */
  get now() { return Date.now() + this.ahead; }

  camera(name) {
    let found = this.cameras.get(name);
    if (!found) {
      found = new Camera(name);
      this.cameras.set(name, found);
      this.#emit("cameras");
    }
    return found;
  }

  #take(message) {
    if (message.type === "tick") {
      this.ahead = message.now - Date.now();
      if (this.problem !== message.problem) {
        this.problem = message.problem;
        this.#emit("state");
      }
    } else if (message.type === "results") {
      const told = new Set();
      for (const answer of message.results) {
        // What was stored before we came did not arrive just now.
        const age = Math.max(0, this.now - answer.answered);
        this.camera(answer.camera).take(answer, performance.now() - (age > 1500 ? age : 0));
        told.add(answer.camera);
      }
      for (const name of told) this.#emit("answers", name);
    } else if (message.type === "devices") {
      this.devices = message.devices;
      for (const device of message.devices) {
        for (const status of device.cameras) {
          this.camera(`${device.site}/${status.camera}`).report(device, status);
        }
      }
      this.#emit("devices");
    } else {
      this.#emit(message.type, message);
    }
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
