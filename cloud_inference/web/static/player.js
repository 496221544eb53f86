// One camera's live picture: decoded here where the browser can, drawn together with the answer for it.

// A picture waits for its answer no longer than this.
const WAIT_MS = 1500;
const MOST_WAITING = 6;

export const canDecode = () => window.isSecureContext && "VideoDecoder" in window;

/** `avc1.PPCCLL` from the sequence parameter set of an Annex B keyframe (ITU-T H.264, 7.3.2.1); "" without. */
export function avcCodec(data) {
  for (let at = 0; at + 6 < data.length; at += 1) {
    if (data[at] === 0 && data[at + 1] === 0 && data[at + 2] === 1 && (data[at + 3] & 0x1f) === 7) {
      return `avc1.${[4, 5, 6].map((it) => data[at + it].toString(16).padStart(2, "0")).join("")}`;
    }
  }
  return "";
}

const CODECS = { h264: avcCodec, hevc: () => "hev1.1.6.L93.B0", av1: () => "av01.0.04M.08" };

export class Player {
  /**
   * camera: of the store. stage: holds `canvas`. shown(answer or null): called after each picture.
   * unable(): this browser cannot decode this camera's video.
   */
  constructor(camera, canvas, shown, unable) {
    this.camera = camera;
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.shown = shown;
    this.unable = unable;
    this.waiting = [];
    this.picture = null;
    this.held = false;
    this.errors = 0;
    this.queue = Promise.resolve();
  }

  /** A message with a picture; one after the other, as they came. */
  take(message) {
    this.queue = this.queue.then(() => this.#take(message)).catch(() => this.#failed());
  }

  async #take({ header, data }) {
    if (this.closed) return;
    if (header.format) this.format = header.format;
    if (!this.format) return;
    if (header.kind === "still") {
      const format = this.format;
      try {
        this.#put({ ...header, format, image: await createImageBitmap(new Blob([data])) });
      } catch { /* a broken image: the next one comes */ }
      return;
    }
    if (header.key) await this.#configure(data);
    if (this.decoder?.state !== "configured") return;
    if (!this.begun && !header.key) return;
    this.begun = true;
    this.headers.set(header.sequence, { ...header, format: this.format });
    this.decoder.decode(new EncodedVideoChunk({
      type: header.key ? "key" : "delta", timestamp: header.sequence, data,
    }));
  }

  async #configure(data) {
    const codec = CODECS[this.format.codec]?.(data) || "";
    if (this.decoder?.state === "configured" && codec === this.codec) return;
    this.#close();
    const config = { codec, optimizeForLatency: true, hardwareAcceleration: "prefer-software" };
    const able = codec && canDecode() && (await VideoDecoder.isConfigSupported(config)).supported;
    if (this.closed) return;
    if (!able) {
      this.unable();
      return;
    }
    this.codec = codec;
    this.headers = new Map();
    this.begun = false;
    const decoder = new VideoDecoder({
      output: (frame) => {
        const header = this.headers.get(frame.timestamp);
        this.headers.delete(frame.timestamp);
        if (header && decoder === this.decoder) this.#put({ ...header, image: frame });
        else frame.close();
      },
      error: () => this.#failed(),
    });
    this.decoder = decoder;
    decoder.configure(config);
  }

  /** Broken once: the next keyframe begins anew. Broken again: stills. */
  #failed() {
    this.errors += 1;
    this.#close();
    if (this.errors > 1 && !this.closed) this.unable();
  }

  /** A decoded picture: shown as soon as its answer is known. */
  #put(picture) {
    picture.since = performance.now();
    this.waiting.push(picture);
    while (this.waiting.length > MOST_WAITING) this.waiting.shift().image.close();
    this.look();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.look(), WAIT_MS + 20);
  }

  /** Show the newest picture whose answer is known, or that has waited for long enough. */
  look() {
    const now = performance.now();
    const ready = this.waiting.findLastIndex((one) =>
      this.camera.answerFor(one.epoch, one.sequence) || now - one.since >= WAIT_MS || !this.picture);
    if (ready >= 0) {
      for (const old of this.waiting.splice(0, ready + 1)) {
        if (this.picture && this.picture !== old) this.picture.image.close();
        this.picture = old;
      }
      if (!this.held) this.#draw();
    } else if (!this.held && this.picture && !this.picture.answered) {
      this.#tell();
    }
  }

  /** Live pictures are decoded and not drawn: the canvas keeps what is on it. */
  hold() { this.held = true; }

  /** Put a picture of the past on the canvas, {image, epoch, sequence, format}; null where none is kept. */
  place(picture) {
    this.hold();
    if (picture) this.#lay(picture);
    else this.#blank();
  }

  /** The newest live picture again, and those that follow. */
  release() {
    this.held = false;
    if (this.picture) this.#draw();
    else this.#blank();
  }

  #draw() {
    this.#lay(this.picture);
    this.#tell();
  }

  /** The picture, whole: a crop lies where it was cut out. The canvas says whose frame it shows. */
  #lay({ image, format, epoch, sequence }) {
    const [width, height] = format.source.map((side, axis) => Math.round(side / format.scale[axis]));
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    const [left, top] = format.origin.map((at, axis) => at / format.scale[axis] - format.pad[axis]);
    this.context.drawImage(image, left, top);
    Object.assign(this.canvas.dataset, { epoch, sequence });
  }

  #blank() {
    this.context.fillStyle = "#0b0e13";
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    delete this.canvas.dataset.epoch;
    delete this.canvas.dataset.sequence;
  }

  #tell() {
    const { epoch, sequence, format } = this.picture;
    const answer = this.camera.answerFor(epoch, sequence);
    this.picture.answered = Boolean(answer);
    this.shown(answer, format.source);
  }

  #close() {
    if (this.decoder && this.decoder.state !== "closed") this.decoder.close();
    this.decoder = null;
    this.codec = "";
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
    this.#close();
    for (const one of [...this.waiting, this.picture]) one?.image.close();
    this.waiting = [];
    this.picture = null;
  }
}
