// The page: who looks, what at, and what comes in.

import { ICONS, fill, h, icon, say, text } from "./dom.js";
import { CameraPage } from "./camera.js";
import { Fleet } from "./fleet.js";
import { Link } from "./link.js";
import { login } from "./login.js";
import { Store } from "./store.js";
import { Wall } from "./wall.js";

const UPDATE_MS = 200;
const HIDDEN_MS = 5000;

const main = document.getElementById("main");
const bar = document.getElementById("bar");

class App {
  constructor(me) {
    this.me = me;
    this.link = new Link();
    this.store = new Store(this.link);
    this.stills = new Set(); // cameras whose video this browser cannot decode
    this.page = null;
    this.store.addEventListener("cameras", () => this.page?.sync?.());
    this.store.addEventListener("answers", ({ detail }) => this.#views(detail, (view) => view.player.look()));
    this.store.addEventListener("devices", () => this.page?.devices?.());
    this.store.addEventListener("state", () => this.#state());
    this.link.addEventListener("picture", ({ detail }) => {
      this.#views(detail.header.camera, (view) => view.player.take(detail));
    });
    this.link.addEventListener("over", ({ detail }) => this.#over(detail));
    this.#bar();
    window.addEventListener("hashchange", () => this.route());
    document.addEventListener("visibilitychange", () => this.#visible());
    this.timer = setInterval(() => this.update(), UPDATE_MS);
    this.route();
  }

  get canWrite() { return this.me.methods.includes("write"); }

  #views(name, use) {
    for (const view of this.page?.views || []) if (view.camera.name === name) use(view);
  }

  /** Ask for the pictures that can be seen now. */
  watch() {
    const views = this.unseen ? [] : this.page?.wanted || [];
    this.link.watch(Object.fromEntries(views.map((view) => [view.camera.name, view.how])));
  }

  #visible() {
    clearTimeout(this.hiding);
    const hide = () => { this.unseen = true; this.watch(); };
    if (document.hidden) this.hiding = setTimeout(hide, HIDDEN_MS);
    else if (this.unseen) { this.unseen = false; this.watch(); }
  }

  route() {
    const [, kind, site, camera] = location.hash.split("/").map(decodeURIComponent);
    const before = this.page;
    before?.close();
    if (kind === "fleet") this.page = new Fleet(this);
    else if (kind === "camera" && site && camera) this.page = new CameraPage(this, `${site}/${camera}`);
    else this.page = new Wall(this);
    fill(main, this.page.element);
    document.title = `${this.page.title.textContent} · Eyeline`;
    for (const link of bar.querySelectorAll("nav a")) {
      const here = link.dataset.kind === (kind === "fleet" ? "fleet" : "wall");
      link[here ? "setAttribute" : "removeAttribute"]("aria-current", "page");
    }
    if (before) {
      window.scrollTo(0, 0);
      main.focus({ preventScroll: true });
    }
    this.watch();
    this.update();
  }

  update() { this.page.update(performance.now()); }

  #state() {
    const problem = this.store.connected ? this.store.problem : "Connection lost. Trying again";
    text(this.lamp.lastChild, this.store.connected ? (problem ? "Trouble" : "Connected") : "Offline");
    this.lamp.dataset.state = problem ? (this.store.connected ? "trouble" : "lost") : "up";
    this.lamp.title = problem;
    this.trouble.hidden = !problem;
    text(this.trouble, problem);
    if (problem) say(problem);
    this.update();
  }

  #bar() {
    const link = (kind, title, target) =>
      h("a", { href: target, data: { kind } }, icon(ICONS[kind]), h("span", { text: title }));
    this.lamp = h("span.lamp", { data: { state: "lost" } }, h("i"), h("span", { text: "Connecting" }));
    this.trouble = h("p.trouble", { hidden: true });
    const leave = this.me.open ? null
      : h("button.plain", { type: "button", click: () => this.#leave(), "aria-label": "Log out" }, icon(ICONS.out),
        h("span.wide", { text: "Log out" }));
    fill(bar,
      h("a.brand", { href: "#/" }, h("img", { src: "/static/mark.svg", alt: "", width: "26", height: "26" }), "Eyeline"),
      h("nav", { "aria-label": "Pages" }, link("wall", "Cameras", "#/"), link("fleet", "Fleet", "#/fleet")),
      h("div.who", {}, h("span.tenant.wide", { text: this.me.tenant }), this.lamp, leave),
      this.trouble);
    bar.hidden = false;
  }

  async #leave() {
    await fetch("/logout", { method: "POST" });
    this.#over("");
  }

  #over(why) {
    clearInterval(this.timer);
    this.link.close();
    this.page?.close();
    bar.hidden = true;
    start(why);
  }
}

/** Log in where that is needed, then show the page. */
async function start(why = "") {
  const answer = await fetch("/api/me").catch(() => null);
  if (answer?.ok) {
    window.eyeline = new App(await answer.json());
  } else if (answer?.status === 401) {
    fill(main, login(why, () => location.reload()));
    main.querySelector("textarea").focus();
  } else {
    const reason = answer ? await answer.text() : "The server does not answer.";
    fill(main, h("section.page", {}, h("h1", { text: "Eyeline" }), h("p.nothing", { text: reason })));
    setTimeout(start, 2000);
  }
}

start();
