// Logging in: a token of the API, which then lives in a cookie that no script can read.

import { h, text } from "./dom.js";

export function login(why, done) {
  const token = h("textarea", {
    id: "token", name: "token", rows: "5", required: true, spellcheck: "false", autocomplete: "off",
    autocapitalize: "off", "aria-describedby": "token-help login-problem",
  });
  const problem = h("p.problem", { id: "login-problem", role: "alert", text: why });
  const send = h("button.primary", { type: "submit", text: "Log in" });
  const form = h("form.card.login", {
    submit: async (event) => {
      event.preventDefault();
      send.disabled = true;
      text(problem, "");
      try {
        const answer = await fetch("/login", {
          method: "POST", headers: { "Content-Type": "application/json" },
          body: JSON.stringify({ token: token.value }),
        });
        if (answer.ok) return done();
        text(problem, await answer.text());
      } catch {
        text(problem, "The server does not answer. Try again.");
      } finally {
        send.disabled = false;
      }
      token.focus();
    },
  },
  h("img", { src: "/static/mark.svg", alt: "", width: "44", height: "44" }),
  h("h1", { text: "Eyeline" }),
  h("label", { for: "token", text: "Access token" }),
  token,
  h("p.help", { id: "token-help" }, "Made by ", h("code", { text: "cloud-inference token" }),
    ". It decides which cameras you see."),
  problem, send);
  return form;
}
