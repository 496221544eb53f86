// The connection to the server: one WebSocket, made again for as long as it takes.

const SILENT_MS = 3500;
const SESSION_OVER = 4401;

export class Link extends EventTarget {
  /** Events: `state` (up or not), `text` (a message), `picture` (header, bytes), `over` (log in again). */
  constructor() {
    super();
    this.up = false;
    this.watched = {};
    this.wait = 250;
    this.heard = performance.now();
    this.timer = setInterval(() => this.#look(), 500);
    this.#connect();
  }

  /** Ask for pictures of these cameras: name to "video" or "stills". */
  watch(cameras) {
    this.watched = cameras;
    this.#ask();
  }

  close() {
    clearInterval(this.timer);
    clearTimeout(this.again);
    this.closed = true;
    this.socket?.close();
  }

  #connect() {
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.heard = performance.now();
    socket.addEventListener("open", () => {
      this.wait = 250;
      this.#set(true);
      this.#ask();
    });
    socket.addEventListener("message", ({ data }) => {
      if (socket !== this.socket) return;
      this.heard = performance.now();
      if (typeof data === "string") this.#emit("text", JSON.parse(data));
      else this.#emit("picture", unpack(data));
    });
    socket.addEventListener("close", ({ code, reason }) => {
      if (socket !== this.socket) return;
      this.#set(false);
      if (this.closed) return;
      if (code === SESSION_OVER) return this.#emit("over", reason);
      this.again = setTimeout(() => this.#connect(), this.wait);
      this.wait = Math.min(this.wait * 2, 4000);
    });
  }

  #ask() {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ cameras: this.watched }));
  }

  /** The server speaks every second; a silent one is gone, whatever the network says. */
  #look() {
    if (this.up && performance.now() - this.heard > SILENT_MS) {
      const socket = this.socket;
      this.socket = null;
      socket.close();
      this.#set(false);
      if (!this.closed) this.#connect();
    }
  }

  #set(up) {
    if (up === this.up) return;
    this.up = up;
    this.#emit("state", up);
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/** Header length (4 bytes), header (JSON), picture. */
function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  return { header, data: new Uint8Array(buffer, 4 + length) };
}
